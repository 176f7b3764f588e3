-- Remove consumers that have nothing pending and have been idle long enough, as of this moment.
-- KEYS: stream; ARGV: group, least idle ms, consumer, consumer...
-- Returns for each consumer {status, number}: "removed"; "pending" and how many entries;
-- "active" and its idle ms; "gone".
local stream, group, min_idle = KEYS[1], ARGV[1], tonumber(ARGV[2])

local now = {}
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local field = {}
  for i = 1, #info, 2 do field[info[i]] = info[i + 1] end
  now[field['name']] = field
end

local reply = {}
for i = 3, #ARGV do
  local found = now[ARGV[i]]
  if not found then
    reply[#reply + 1] = {'gone', 0}
  elseif found['pending'] > 0 then
    -- DELCONSUMER would drop these from the pending list, and nobody would ever get them again
    reply[#reply + 1] = {'pending', found['pending']}
  elseif found['idle'] < min_idle then
    reply[#reply + 1] = {'active', found['idle']}
  else
    redis.call('XGROUP', 'DELCONSUMER', stream, group, ARGV[i])
    now[ARGV[i]] = nil
    reply[#reply + 1] = {'removed', 0}
  end
end
return reply
