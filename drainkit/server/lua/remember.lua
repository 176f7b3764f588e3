-- Add intervals to the recorded set, from what the audits themselves say.
-- Needs ids.lua and recorded.lua before it.
-- KEYS: state, recorded, audit; ARGV: the audit's last id as it was read ("" more is to come), and
-- for each interval group, first and last id
local state, recorded = KEYS[1], KEYS[2]
for i = 2, #ARGV, 3 do
  local prefix, from, to = prefix_of(ARGV[i]), key_of(ARGV[i + 1]), key_of(ARGV[i + 2])
  cover(recorded, prefix, from, to, intervals(recorded, prefix, from, to, 100))
end
redis.call('HSET', state, 'recorded', int(redis.call('ZCARD', recorded)))
local of_audit = 'audit:' .. KEYS[3]
local known = redis.call('HGET', state, of_audit)
if ARGV[1] ~= '' and (not known or known == '' or not before(ARGV[1], known)) then
  redis.call('HSET', state, of_audit, ARGV[1])
end
return 1
