-- Destroy the group of scope history if it has nothing pending and nothing left to read.
-- Needs ids.lua before it.
-- KEYS: stream, state; ARGV: group, boundary, its consumer group. Returns 1 if destroyed, else 0.
-- It goes by where its last commit left the group: the list of groups takes 3 us for each.
local position = redis.call('HGET', KEYS[2], 'history:' .. of_history(ARGV[3], ARGV[1]))
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1)
if not position or position == '' or pending.err or #pending > 0
    or #redis.call('XRANGE', KEYS[1], '(' .. position, ARGV[2], 'COUNT', 1) > 0 then
  return 0
end
redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[2], 'history_group:' .. ARGV[1], 'ended')
return 1
