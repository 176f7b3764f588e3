-- Take, renew or give back the lease of scheduled runs of a group.
-- KEYS: state; ARGV: field, token, how long in ms (0 gives it back)
-- Returns 0 if it is this token's now, else the ms for which another one holds it.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HGET', KEYS[1], ARGV[1]) or ''
local token, until_ms = held:match('^(%S+) (%d+)$')
local left = math.min(tonumber(until_ms or 0) - now, 60000)
if token ~= ARGV[2] and left > 0 then
  -- a clock that was set back leaves an end far ahead; nobody takes more than a minute
  redis.call('HSET', KEYS[1], ARGV[1], token .. ' ' .. string.format('%.0f', now + left))
  return left
end
if tonumber(ARGV[3]) > 0 or token == ARGV[2] then
  -- written, not deleted: a drainer's rules let it write this key and delete none
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. string.format('%.0f', now + ARGV[3]))
end
return 0
