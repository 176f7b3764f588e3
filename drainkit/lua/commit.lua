-- Audit and acknowledge a batch, in one step, audit first.
-- KEYS: stream, audit stream, kill switch, state
-- ARGV: group, consumer, rate ("none" or events per second), run id, least idle ms, deadline in us,
--       number of records, then for each record: owner ("" = this consumer), original id, symbol,
--       age_sec, confidence, action, drained_at_ts, reason
-- Returns {"ok", now in us, wait in us until the next turn, id, id...}, the ids being those that
-- are no longer this consumer's and so were neither audited nor acknowledged;
-- or {"wait", now, us}; or {"stopped", now, 0}; or {"late", now, 0}. Unless it says "ok" nothing
-- changed.
local stream, audit, stop, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, consumer, rate, run_id, min_idle = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local records, FIRST, WIDTH = tonumber(ARGV[7]), 8, 8

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local function int(number) return string.format('%.0f', number) end

if redis.call('EXISTS', stop) == 1 then return {'stopped', int(now_us), '0'} end
-- by now its sender has given it up, and may have closed its books without it
if now_us > tonumber(ARGV[6]) then return {'late', int(now_us), '0'} end

-- XACK ignores ownership: a drain that slept while another took its entries over could
-- acknowledge them a second time. So: which of these ids are still this consumer's?
local mine = {}
local from, last = ARGV[FIRST + 1], ARGV[FIRST + (records - 1) * WIDTH + 1]
while true do
  local rows = redis.call('XPENDING', stream, group, from, last, 1000, consumer)
  for _, row in ipairs(rows) do mine[row[1]] = true end
  if #rows < 1000 then break end
  from = '(' .. rows[#rows][1]
end

local accepted, rejected = {}, {}
for r = 1, records do
  local at = FIRST + (r - 1) * WIDTH
  local owner, id = ARGV[at], ARGV[at + 1]
  local ok = mine[id]
  if owner ~= '' and not ok then
    -- an entry without a body is never claimed (see claim.lua): its owner must still be idle
    local row = redis.call('XPENDING', stream, group, id, id, 1)[1]
    ok = row and row[2] == owner and row[3] >= tonumber(min_idle)
      and #redis.call('XRANGE', stream, id, id) == 0
  end
  if ok then accepted[#accepted + 1] = at else rejected[#rejected + 1] = id end
end

-- Pace of all drains of the stream together. `log` holds (ms, count) of the last second by the
-- audit's ids; the clock of those ids and TIME can differ by 1 ms, so 2 ms are kept as a guard.
local GUARD = 2
local pace = redis.call('HGET', state, 'pace') or ''
local due = tonumber(pace:match('^%d+')) or 0
local log = {}
for ms, n in pace:gmatch('(%d+):(%d+)') do
  ms, n = tonumber(ms), tonumber(n)
  if ms > now_ms - 1000 - GUARD then log[#log + 1] = {ms, n} end
end

-- us to wait until `n` more fit into a window of `width` ms that may hold `cap`
local function wait_for(width, cap, n)
  local sum = n
  for i = 1, #log do
    if log[i][1] > now_ms - width - GUARD then sum = sum + log[i][2] end
  end
  local i = 1
  local wait = 0
  while sum > cap and i <= #log do
    if log[i][1] > now_ms - width - GUARD then
      sum = sum - log[i][2]
      wait = (log[i][1] + width + GUARD) * 1000 - now_us
    end
    i = i + 1
  end
  return wait
end

local audit_ms = 0
if redis.call('EXISTS', audit) == 1 then
  local info = redis.call('XINFO', 'STREAM', audit)
  for i = 1, #info, 2 do
    -- beyond 2^53 the number is not exact, but then it is far in the future in any case
    if info[i] == 'last-generated-id' then audit_ms = tonumber(info[i + 1]:match('^%d+')) end
  end
  -- ids only grow: after the clock stepped back they would all fall into one millisecond, and
  -- ids that are used up would fail in the middle of the batch
  if audit_ms > now_ms + 1 then
    return {'wait', int(now_us), int(math.min((audit_ms - now_ms) * 1000, 1e15))}
  end
end

local n = #accepted
if n > 0 and rate ~= 'none' then
  rate = tonumber(rate)
  local gap = n / rate * 1000000
  local wait = math.max(
    -- a slower drain's turn may be far off; this one's own gap is the most it waits for it
    math.min(due - now_us, gap),
    wait_for(1000, math.ceil(rate), n),
    wait_for(100, math.max(1, math.floor(rate / 5)), n))
  if rate < 1 then
    wait = math.max(wait, (audit_ms + GUARD) * 1000 + gap - now_us)
    due = now_us + gap
  else
    -- The next turn follows the last by the clock, not by when it was taken. Of a delay up to 50 ms
    -- are made up for: a busy client then loses no rate, and the windows above keep the pace even.
    due = math.max(due, now_us - 50000)
    if due > now_us + gap then due = now_us end
    due = due + gap
  end
  if wait > 0 then return {'wait', int(now_us), int(math.ceil(wait))} end
end

if n > 0 then
  -- Lua does not roll back. With all audit records first, whatever fails here leaves entries
  -- unacknowledged and is seen by the first XADD, before anything changed. An XACK denied after
  -- the XADDs (a right taken away meanwhile) would leave records that the next run writes again:
  -- so both are tried first, HSET before XACK, as OOM is only noticed by a script's first write.
  redis.call('HSET', state, 'pace', pace)
  redis.call('XACK', stream, group, '0-0')
  local audited
  for i = 1, n do
    local at = accepted[i]
    audited = redis.call('XADD', audit, '*',
      'original_id', ARGV[at + 1], 'symbol', ARGV[at + 2], 'age_sec', ARGV[at + 3],
      'confidence', ARGV[at + 4], 'action', ARGV[at + 5], 'drained_at_ts', ARGV[at + 6],
      'reason', ARGV[at + 7], 'consumer_group', group, 'run_id', run_id)
  end
  local ids = {}
  for i = 1, n do
    ids[#ids + 1] = ARGV[accepted[i] + 1]
    if #ids == 1000 or i == n then  -- unpack fails near 8,000 values
      redis.call('XACK', stream, group, unpack(ids))
      ids = {}
    end
  end
  local ms = math.max(now_ms, tonumber(audited:match('^%d+')))
  if #log > 0 and log[#log][1] == ms then
    log[#log][2] = log[#log][2] + n
  else
    log[#log + 1] = {ms, n}
  end
  local parts = {int(due)}
  for i = 1, #log do parts[i + 1] = int(log[i][1]) .. ':' .. int(log[i][2]) end
  redis.call('HSET', state, 'pace', table.concat(parts, ' '))
end

local reply = {'ok', int(now_us), int(math.max(0, due - now_us))}
for i = 1, #rejected do reply[#reply + 1] = rejected[i] end
return reply
