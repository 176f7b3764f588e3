-- Claim a batch for one consumer, in one step: what it has pending already, then new entries.
-- KEYS: stream, kill switch
-- ARGV: group, consumer, boundary, count, byte limit, cursor, lowest position, "new" or "pending",
--       least idle ms, deadline in us, then for "pending" pairs of id and owner
-- Returns {status, now in us, position, entries, pairs tried}; an entry is {id, fields} or
-- {id, false} where the body is gone.
local stream, stop = KEYS[1], KEYS[2]
local group, consumer, boundary = ARGV[1], ARGV[2], ARGV[3]
local count, byte_limit = tonumber(ARGV[4]), tonumber(ARGV[5])
local cursor, lowest, kind, min_idle = ARGV[6], ARGV[7], ARGV[8], ARGV[9]

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = string.format('%.0f', now_us)
-- by now its sender has given it up: what it would claim would be pending for nobody
if now_us > tonumber(ARGV[10]) then return {'late', now, '', {}} end

-- ids are compared as texts: 64 bits do not fit a Lua number
local function number_before(a, b)
  if #a ~= #b then return #a < #b end
  return a < b
end
local function before(a, b)
  local a_ms, a_seq = a:match('^(%d+)-(%d+)$')
  local b_ms, b_seq = b:match('^(%d+)-(%d+)$')
  if a_ms ~= b_ms then return number_before(a_ms, b_ms) end
  return number_before(a_seq, b_seq)
end

local function field(reply, name)
  for i = 1, #reply, 2 do
    if reply[i] == name then return reply[i + 1] end
  end
end

if redis.call('EXISTS', stop) == 1 then return {'stopped', now, '', {}} end
if redis.call('TYPE', stream).ok ~= 'stream' then return {'gone', now, '', {}} end

local position
for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  if field(info, 'name') == group then position = field(info, 'last-delivered-id') end
end
if not position then return {'no_group', now, '', {}} end
-- a stream that was deleted and made anew, or an older copy of it, has other entries at these ids
local last = field(redis.call('XINFO', 'STREAM', stream), 'last-generated-id')
if before(last, boundary) then return {'recreated', now, position, {}} end
if before(position, lowest) then return {'moved_back', now, position, {}} end

local entries, bytes = {}, 0

local function size(fields)
  local sum = 0
  for i = 1, #fields do sum = sum + #fields[i] end
  return sum
end

local function add(id)
  local found = redis.call('XRANGE', stream, id, id)[1]
  entries[#entries + 1] = found or {id, false}
  if found then bytes = bytes + size(found[2]) end
end

-- first what an earlier run or a lost reply left pending: claiming twice is harmless
if before(cursor, boundary) then
  local own = redis.call('XPENDING', stream, group, '(' .. cursor, boundary, count, consumer)
  for _, row in ipairs(own) do
    if #entries > 0 and bytes >= byte_limit then return {'ok', now, position, entries, 0} end
    add(row[1])
  end
end

local want, tried = count - #entries, 0
if kind == 'pending' then
  local i = 11
  while i < #ARGV and want > 0 and bytes < byte_limit do
    local id, owner = ARGV[i], ARGV[i + 1]
    local row = redis.call('XPENDING', stream, group, id, id, 1)[1]
    -- owner and idle time again, now: the owner may have come back since it was listed
    if row and row[2] == owner and row[3] >= tonumber(min_idle) then
      local before_add = #entries
      add(id)
      -- from 7.0 on XCLAIM erases an entry without a body from the pending list, so such an
      -- entry stays with its owner until the commit records it
      if entries[before_add + 1][2] then
        redis.call('XCLAIM', stream, group, consumer, min_idle, id, 'JUSTID')
      end
      want = want - 1
    end
    i = i + 2
    tried = tried + 1
  end
elseif want > 0 and bytes < byte_limit and before(position, boundary) then
  -- COUNT 0 would mean all, and an XREADGROUP cannot stop at the boundary by itself, so look how
  -- many entries there are; in steps, since one batch must not hold gigabytes
  local k, from = 0, '(' .. position
  while k < want and bytes < byte_limit do
    local step = math.min(64, want - k)
    local seen = redis.call('XRANGE', stream, from, boundary, 'COUNT', step)
    for _, entry in ipairs(seen) do
      k = k + 1
      bytes = bytes + size(entry[2])
      if bytes >= byte_limit then break end
    end
    if #seen < step then break end
    from = '(' .. seen[#seen][1]
  end
  if k > 0 then
    local read = redis.call(
      'XREADGROUP', 'GROUP', group, consumer, 'COUNT', k, 'STREAMS', stream, '>')
    for _, entry in ipairs(read[1][2]) do entries[#entries + 1] = entry end
    position = entries[#entries][1]
  end
end
return {'ok', now, position, entries, tried}
