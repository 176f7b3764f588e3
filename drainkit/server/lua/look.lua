-- What a live drain has to know of stream, group and side keys, as of one moment; writes nothing.
-- Needs ids.lua and recorded.lua before it.
-- KEYS: stream, audit, stop, state, recorded, runs; ARGV: group, consumer, how many groups the stream
-- may have, the consumer group. Returns {now in us, the types of all keys, the kill switch, XINFO
-- STREAM of stream and audit, XINFO GROUPS, the audit's last id as of the last commit, where a new
-- group of scope history would begin, how many entries are pending for the consumer (at most 1), how
-- many bytes maxmemory leaves ("" no limit, or INFO does not say), "made" if scope history made the
-- consumer group}; or {"many_groups"}.
local time, types = redis.call('TIME'), {}
for i, key in ipairs(KEYS) do types[i] = redis.call('TYPE', key).ok end
local function info_of(i) return types[i] == 'stream' and redis.call('XINFO', 'STREAM', KEYS[i]) or {} end
local info, groups, own = info_of(1), {}, {}
if #info > 0 then
  if field(info, 'groups') > tonumber(ARGV[3]) then return {'many_groups'} end
  groups = redis.call('XINFO', 'GROUPS', KEYS[1])
end
for _, group in ipairs(groups) do
  if field(group, 'name') == ARGV[1] then
    own = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
  end
end
local history = of_history(ARGV[4], ARGV[1])
local state = types[4] == 'hash' and redis.call('HMGET', KEYS[4], 'audit:' .. KEYS[2],
  'history_left:' .. history, 'history:' .. history, 'life', 'history_group:' .. ARGV[4]) or {}
local is_same = not state[4] or #info > 0 and is_same_life(KEYS[1], info, state[4])
local memory = redis.call('INFO', 'memory')
local most = tonumber(memory:match('[\n]maxmemory:(%d+)') or 0)
local used = tonumber(memory:match('[\n]used_memory:(%d+)'))
local free = most > 0 and used and int(math.max(0, most - used)) or ''
local begins = is_same and (state[2] and state[2] ~= '' and state[2] or state[3]) or ''
return {int(time[1] * 1000000 + time[2]), types, types[3] == 'string' and redis.call('GET', KEYS[3]) or '',
  info, info_of(2), groups, state[1] or '', begins, #own, free,
  is_same and state[5] or ''}
