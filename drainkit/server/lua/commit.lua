-- Audit and acknowledge a batch, in one step, audit first.
-- Of kind "new" it holds all entries after `after` up to its last; the group gets them by
-- XREADGROUP with NOACK, which is delivery and acknowledgement in one. Of kind "pending" its
-- entries were delivered before, and XACK acknowledges them.
-- Needs ids.lua before it.
-- KEYS: stream, audit stream, kill switch, state
-- ARGV: group, consumer, rate ("none" or events per second), run id, deadline in us, boundary,
--       kind, the stream's counters as known before the batch was read ("" unknown), `after` (new)
--       or the least idle ms (pending), drained_at_ts, number of records, then for each record: original id, symbol,
--       age_sec, confidence, action, reason and, of kind pending, its owner
-- Returns {"ok", now in us, wait in us until the next turn, position, counters, id, id...}, the
-- ids being those that were neither audited nor acknowledged, since they are somebody else's now;
-- or {"wait", now, us}; or {reason, now, 0} of a refusal ("stopped": and the switch's value). Unless it says "ok" nothing changed.
local stream, audit, stop, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, consumer, rate, run_id, boundary = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[6]
local kind, drained_at, records, FIRST = ARGV[7], ARGV[10], tonumber(ARGV[11]), 12
local WIDTH = kind == 'new' and 6 or 7

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local function int(number) return string.format('%.0f', number) end
local function refused(reason) return {reason, int(now_us), '0'} end

local function field(reply, name)
  for i = 1, #reply, 2 do
    if reply[i] == name then return reply[i + 1] end
  end
end

if redis.call('EXISTS', stop) == 1 then
  local is_text = redis.call('TYPE', stop).ok == 'string'
  return {'stopped', int(now_us), '0', is_text and redis.call('GET', stop) or ''}
end
-- by now its sender has given it up, and may have closed its books without it
if now_us > tonumber(ARGV[5]) then return refused('late') end
if redis.call('TYPE', stream).ok ~= 'stream' then return refused('gone') end
local position
for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  if field(info, 'name') == group then position = field(info, 'last-delivered-id') end
end
if not position then return refused('no_group') end
local info = redis.call('XINFO', 'STREAM', stream)
-- "added deleted": how many entries were ever added, and how many of them are gone. 6.2 counts none.
local added, counters = field(info, 'entries-added'), ''
if added then counters = int(added) .. ' ' .. int(added - field(info, 'length')) end
-- a stream that was deleted and made anew, or an older copy of it, has other entries at these ids
local added_then = tonumber(ARGV[8]:match('^%d+'))
if before(field(info, 'last-generated-id'), boundary) or added_then and added < added_then then
  return refused('recreated')
end

local accepted, rejected = {}, {}

-- New entries: whatever lies after the position is undelivered, so it is nobody's yet. If some were
-- deleted meanwhile, XREADGROUP would go on to entries that nobody decided, past the boundary even:
-- so unless the counters rule that out, look which are there.
local function choose_new(after)
  if before(position, after) then return 'moved_back' end
  local there
  local is_whole = counters ~= '' and counters:match(' .*') == ARGV[8]:match(' .*')
  if records > 0 and not is_whole then
    there = {}
    local last = ARGV[FIRST + (records - 1) * WIDTH]
    local found = {}
    if before(position, last) then
      found = redis.call('XRANGE', stream, '(' .. position, last, 'COUNT', records)
    end
    for _, entry in ipairs(found) do there[entry[1]] = true end
  end
  for r = 1, records do
    local at = FIRST + (r - 1) * WIDTH
    local id = ARGV[at]
    local ok = there == nil and (position == after or before(position, id)) or there and there[id]
    if ok then accepted[#accepted + 1] = at else rejected[#rejected + 1] = id end
  end
end

-- Pending entries: XACK ignores ownership, so a drain that slept while another took its entries
-- over could acknowledge them a second time; and their owner may have come back to life.
local function choose_pending(min_idle)
  local mine, seen = {}, {}
  local from, last = ARGV[FIRST], ARGV[FIRST + (records - 1) * WIDTH]
  if ARGV[FIRST + 6] == consumer then
    for _, row in ipairs(redis.call('XPENDING', stream, group, from, last, records, consumer)) do
      mine[row[1]] = true
    end
  end
  for r = 1, records do
    local at = FIRST + (r - 1) * WIDTH
    local id, owner = ARGV[at], ARGV[at + 6]
    local ok = mine[id]
    if owner ~= consumer then
      local row = redis.call('XPENDING', stream, group, id, id, 1)[1]
      ok = row and row[2] == owner and row[3] >= min_idle
    end
    -- an id given twice would get two records
    if ok and not seen[id] then
      accepted[#accepted + 1] = at
    else
      rejected[#rejected + 1] = id
    end
    seen[id] = true
  end
end

if kind == 'new' then
  local refusal = choose_new(ARGV[9])
  if refusal then return refused(refusal) end
elseif records > 0 then
  choose_pending(tonumber(ARGV[9]))
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

local n = #accepted
local audit_ms = 0
if redis.call('EXISTS', audit) == 1 then
  -- beyond 2^53 the number is not exact, but then it is far in the future in any case
  local last = field(redis.call('XINFO', 'STREAM', audit), 'last-generated-id')
  audit_ms = tonumber(last:match('^%d+'))
  -- ids only grow: after the clock stepped back they would all fall into one millisecond, and
  -- ids that are used up would fail in the middle of the batch
  if n > 0 and audit_ms > now_ms + 1 then
    return {'wait', int(now_us), int(math.min((audit_ms - now_ms) * 1000, 1e15))}
  end
end

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

-- Lua does not roll back. With all audit records first, whatever fails here leaves entries
-- unacknowledged and is seen by the first XADD, before anything changed. An acknowledgement denied
-- after the XADDs (a right taken away meanwhile) would leave records that the next run writes again:
-- so each is tried first, on what cannot be there, and HSET before all, as OOM is only noticed by a
-- script's first write. A call without records does just this: it proves that a drain could work.
redis.call('HSET', state, 'pace', pace)
redis.call('XACK', stream, group, '0-0')
if n > 0 then
  redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', 1, 'STREAMS', stream,
    '18446744073709551615-18446744073709551614')
  local audited
  for i = 1, n do
    local at = accepted[i]
    audited = redis.call('XADD', audit, '*',
      'original_id', ARGV[at], 'symbol', ARGV[at + 1], 'age_sec', ARGV[at + 2],
      'confidence', ARGV[at + 3], 'action', ARGV[at + 4], 'drained_at_ts', drained_at,
      'reason', ARGV[at + 5], 'consumer_group', group, 'run_id', run_id)
  end
  if kind == 'new' then
    redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', n, 'NOACK', 'STREAMS', stream, '>')
    position = ARGV[accepted[n]]
  else
    local ids = {}
    for i = 1, n do
      ids[#ids + 1] = ARGV[accepted[i]]
      if #ids == 1000 or i == n then  -- unpack fails near 8,000 values
        redis.call('XACK', stream, group, unpack(ids))
        ids = {}
      end
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

local reply = {'ok', int(now_us), int(math.max(0, due - now_us)), position, counters}
for i = 1, #rejected do reply[#reply + 1] = rejected[i] end
return reply
