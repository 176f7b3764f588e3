-- Before a drain's first commit: is what the state says of stream, audit and recorded set still so?
-- Needs ids.lua and recorded.lua before it.
-- KEYS: stream, audit, state, recorded; ARGV: consumer group
-- Returns {how, after which id of the audit its records are not in the set}:
-- "whole": all is as the last commit left it; "anew": the stream was made anew since, and what the
-- set said of the old one is forgotten; "behind": the audit lacks records that it had; "ahead": the
-- set lacks records that the audits have (remember.lua adds them): all of them, where nothing tells
-- whether the stream is the one that it was; "gone" without a stream.
local stream, audit, state, recorded = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local info = redis.pcall('XINFO', 'STREAM', stream)
if info.err then return {'gone', ''} end
local found = redis.pcall('XINFO', 'STREAM', audit)
local last = found.err and '0-0' or field(found, 'last-generated-id')
local known, cards, life, anew = unpack(redis.call('HMGET', state,
  'audit:' .. audit, 'recorded', 'life', 'anew'))
known, anew = known or '0-0', anew or '0-0'  -- the audits' last record of an older stream
local count = redis.call('ZCARD', recorded)
local function keep(...)
  redis.call('HSET', state, 'audit:' .. audit, last, 'life', life_of(info), ...)
end

local is_same = true
if life then is_same = is_same_life(stream, info, life) end
if not is_same then
  redis.call('ZREMRANGEBYLEX', recorded, '-', '+')
  count = 0
  local all, newest = redis.call('HGETALL', state), last
  for i = 1, #all, 2 do
    local name, value = all[i], all[i + 1]
    if name:find('^audit:') and value ~= '' and before(newest, value) then newest = value end
    -- where scope history stood, and whose its groups were
    if name:find(is_same == false and '^history' or '^history[_left]*:') then
      redis.call('HSET', state, name, '')
    end
  end
  if is_same == false then
    keep('recorded', '0', 'anew', newest)
    return {'anew', ''}
  end
end
if is_same == nil or known == '' or count ~= tonumber(cards or 0) then
  local is_gone = known ~= '' and last == '0-0' and before(last, known)
  keep('recorded', int(count))
  if is_gone then return {'behind', ''} end
  redis.call('HSET', state, 'audit:' .. audit, '')  -- until it is made again no commit goes through
  return {'ahead', anew}
end
if before(last, known) then
  keep()
  return {'behind', ''}
end
if before(known, last) then return {'ahead', before(known, anew) and anew or known} end
-- What was trimmed from the stream cannot come again, unless it is still pending in the consumer
-- group, also where scope history recorded it.
local first = field(info, 'first-entry')
local pending = redis.pcall('XPENDING', stream, ARGV[1], '-', '+', 1)
local oldest = first and first[1]
if oldest and not pending.err then
  if pending[1] and before(pending[1][1], oldest) then oldest = pending[1][1] end
  local prefix = prefix_of(ARGV[1])
  local dropped = redis.call('ZREMRANGEBYLEX', recorded, '[' .. prefix,
    '(' .. prefix .. key_of(oldest))
  if dropped > 0 then redis.call('HSET', state, 'recorded', int(count - dropped)) end
end
keep()
return {'whole', ''}
