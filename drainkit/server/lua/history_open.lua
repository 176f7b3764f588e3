-- Make the group of scope history where it is missing, where the last exhausted one ended.
-- KEYS: stream, state; ARGV: group. Returns 1 if made, 0 if it was there, -1 without a stream.
if redis.call('TYPE', KEYS[1]).ok ~= 'stream' then return -1 end
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  for i = 1, #info, 2 do
    if info[i] == 'name' and info[i + 1] == ARGV[1] then return 0 end
  end
end
-- from 0-0 again, each entry would get a second record
local from = redis.call('HGET', KEYS[2], 'history:' .. ARGV[1]) or '0-0'
-- first what not every drainer may do: Lua does not roll back
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], from)
redis.call('HSET', KEYS[2], 'history_group:' .. ARGV[1], 'made')
return 1
