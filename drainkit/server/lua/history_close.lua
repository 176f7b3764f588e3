-- Destroy the group of scope history if it has nothing pending and nothing left to read.
-- KEYS: stream, state; ARGV: group, boundary. Returns 1 if destroyed, else 0.
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local field = {}
  for i = 1, #info, 2 do field[info[i]] = info[i + 1] end
  if field['name'] == ARGV[1] then
    local position = field['last-delivered-id']
    if field['pending'] > 0 then return 0 end
    local left = redis.call('XRANGE', KEYS[1], '(' .. position, ARGV[2], 'COUNT', 1)
    if #left > 0 then return 0 end
    redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
    redis.call('HSET', KEYS[2], 'history:' .. ARGV[1], position,
      'history_group:' .. ARGV[1], 'ended')
    return 1
  end
end
return 0
