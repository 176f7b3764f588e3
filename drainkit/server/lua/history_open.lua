-- Make the group of scope history where it is missing, where its last commit left it.
-- Needs ids.lua before it.
-- KEYS: stream, state; ARGV: group, the consumer group to which it belongs, least position
-- Returns {1} if made, {0} if it was there, {-1} without a stream, {-2} if somebody else made it,
-- {-3, name} if the consumer group has another group of scope history.
-- It asks for single groups: their list takes 3 us for each.
local stream, state, group, owner = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
if redis.call('TYPE', stream).ok ~= 'stream' then return {-1} end
local function is_there(name)
  local found = redis.pcall('XPENDING', stream, name, '-', '-', 1)
  return not (found.err and found.err:find('NOGROUP', 1, true))
end
local function is_made(name)
  local made = redis.call('HGET', state, 'history_group:' .. name)
  return made == 'made ' .. owner or made == 'made'  -- as an older version said it
end
-- two at once would record what both of them have before them
local other = redis.call('HGET', state, 'history_of:' .. owner)
if other and other ~= group and is_made(other) and is_there(other) then return {-3, other} end
local exists = is_there(group)
if exists and not is_made(group) then return {-2} end
if not exists then
  -- also one that was destroyed in the middle goes on where it was
  local own = of_history(owner, group)
  local from, left = '0-0', ''
  for _, known in ipairs(redis.call('HMGET', state, 'history:' .. own, 'history_left:' .. own)) do
    if known and known ~= '' then from = known end
  end
  -- what --from leaves out is for the next group of this name
  if before(from, ARGV[3]) then from, left = ARGV[3], from end
  -- first what not every drainer may do: Lua does not roll back
  redis.call('XGROUP', 'CREATE', stream, group, from)
  redis.call('HSET', state, 'history:' .. own, from, 'history_left:' .. own, left)
end
redis.call('HSET', state, 'history_group:' .. group, 'made ' .. owner,
  'history_of:' .. owner, group)
return {exists and 0 or 1}
