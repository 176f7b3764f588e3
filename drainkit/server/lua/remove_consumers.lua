-- Remove consumers that have nothing pending and have been idle long enough, as of this moment.
-- KEYS: stream; ARGV: group, least idle ms ("" how long they idle is known), consumer, consumer...
-- Returns for each consumer {status, number}: "removed"; "pending"; "active" and its idle ms;
-- "gone". Redis tells how long a consumer idles in the list of all of them, 5 us for each; where
-- that is not asked for, the group's number of consumers tells whether one was there.
local stream, group, min_idle = KEYS[1], ARGV[1], tonumber(ARGV[2])

local idle = {}
for _, info in ipairs(min_idle and redis.call('XINFO', 'CONSUMERS', stream, group) or {}) do
  local field = {}
  for i = 1, #info, 2 do field[info[i]] = info[i + 1] end
  idle[field['name']] = field['idle']
end

local function consumers()
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local field = {}
    for i = 1, #info, 2 do field[info[i]] = info[i + 1] end
    if field['name'] == group then return field['consumers'] end
  end
end

local there = not min_idle and consumers()
local reply = {}
for i = 3, #ARGV do
  local name = ARGV[i]
  if min_idle and not idle[name] then
    reply[#reply + 1] = {'gone', 0}
  elseif #redis.call('XPENDING', stream, group, '-', '+', 1, name) > 0 then
    -- DELCONSUMER would drop these from the pending list, and nobody would ever get them again
    reply[#reply + 1] = {'pending', 0}
  elseif min_idle and idle[name] < min_idle then
    reply[#reply + 1] = {'active', idle[name]}
  else
    redis.call('XGROUP', 'DELCONSUMER', stream, group, name)
    idle[name] = nil
    local left = there and consumers()
    reply[#reply + 1] = {there and left == there and 'gone' or 'removed', 0}
    there = left
  end
end
return reply
