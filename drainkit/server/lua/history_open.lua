-- Make the group of scope history where it is missing, where its last commit left it.
-- Needs ids.lua before it.
-- KEYS: stream, state; ARGV: group, the consumer group to which it belongs, least position
-- Returns {1} if made, {0} if it was there, {-1} without a stream, {-2} if somebody else made it,
-- {-3, name} if the consumer group has another group of scope history.
if redis.call('TYPE', KEYS[1]).ok ~= 'stream' then return {-1} end
local groups = {}
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  for i = 1, #info, 2 do
    if info[i] == 'name' then groups[info[i + 1]] = true end
  end
end
local group, owner, state = ARGV[1], ARGV[2], KEYS[2]
-- two at once would record what both of them have before them
local other = redis.call('HGET', state, 'history_of:' .. owner)
if other and other ~= group and groups[other]
    and redis.call('HGET', state, 'history_group:' .. other) == 'made' then
  return {-3, other}
end
local is_made = redis.call('HGET', state, 'history_group:' .. group) == 'made'
if groups[group] and not is_made then return {-2} end
local made = {0}
if not groups[group] then
  -- also one that was destroyed in the middle goes on where it was
  local from = redis.call('HGET', state, 'history:' .. group) or '0-0'
  if before(from, ARGV[3]) then from = ARGV[3] end
  -- first what not every drainer may do: Lua does not roll back
  redis.call('XGROUP', 'CREATE', KEYS[1], group, from)
  made = {1}
end
redis.call('HSET', state, 'history_group:' .. group, 'made', 'history_of:' .. owner, group)
return made
