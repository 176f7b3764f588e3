-- Audit and acknowledge a batch, in one step, audit first.
-- Of kind "new" it holds all entries after `after` up to its last; the group gets them by
-- XREADGROUP with NOACK, which is delivery and acknowledgement in one. Of kind "pending" its
-- entries were delivered before, and XACK acknowledges them. An entry that has its record already
-- (recorded.lua) is acknowledged without a second one.
-- Needs ids.lua and recorded.lua before it.
-- KEYS: stream, audit stream, kill switch, state, recorded set
-- ARGV: group, consumer, rate ("none" or events per second), run id, deadline in us, boundary,
--       kind, the stream's counters as known before the batch was read ("" unknown), `after` (new)
--       or the least idle ms (pending), drained_at_ts, the consumer group to which `group` belongs
--       (itself, or scope history's), the audit's last id as the caller saw it last, us of delay
--       that the pace makes up for, how many groups the stream may have, and the records in
--       MessagePack (thousands of arguments would take twice as long) as columns: original id,
--       symbol, age_sec, confidence, action ("" must be recorded already), reason; of kind pending,
--       the owner of each follows
-- Returns {"ok", now in us, wait in us until the next turn, rate that holds, position, counters,
-- the audit's last id, ms of the records (0 none), number of entries that were deleted, number of
-- ids that follow and were neither audited nor acknowledged (deleted, or somebody else's now),
-- these ids, and then the ids that had their record already};
-- or {"wait", now, us, rate, and no more that means anything}; or {reason, now, 0} of a refusal
-- ("stopped": and the switch's value).
-- Unless it says "ok" or "other" nothing changed but the pace.
local stream, audit, stop, state, recorded = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group, consumer, rate, run_id, boundary = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[6]
local kind, counters_then, drained_at, owner = ARGV[7], ARGV[8], ARGV[10], ARGV[11]
local credit_us, most_groups = tonumber(ARGV[13]), tonumber(ARGV[14])
local ids, symbols, ages, confidences, actions, reasons = unpack(cmsgpack.unpack(ARGV[15]))
local records, OWNERS = #ids, 15

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local function refused(reason) return {reason, int(now_us), '0'} end

if redis.call('EXISTS', stop) == 1 then
  local is_text = redis.call('TYPE', stop).ok == 'string'
  return {'stopped', int(now_us), '0', is_text and redis.call('GET', stop) or ''}
end
-- by now its sender has given it up, and may have closed its books without it
if now_us > tonumber(ARGV[5]) then return refused('late') end
if redis.call('TYPE', stream).ok ~= 'stream' then return refused('gone') end
local info = redis.call('XINFO', 'STREAM', stream)
-- a script takes about 3 us for each group of the list
if field(info, 'groups') > most_groups then return refused('many_groups') end
local position, pending
for _, other in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  if field(other, 'name') == group then
    position, pending = field(other, 'last-delivered-id'), field(other, 'pending')
  end
end
if not position then return refused('no_group') end
-- "added gone": how many entries were ever added, and how many of them are gone. 6.2 counts none.
local added, counters = field(info, 'entries-added'), ''
if added then counters = int(added) .. ' ' .. int(added - field(info, 'length')) end
local added_then = tonumber(counters_then:match('^%d+'))
local pace, audit_then, count_then, life = unpack(redis.call('HMGET', state,
  'pace', 'audit:' .. audit, 'recorded', 'life'))
local life_now, is_same = life_of(info), true
if life and life ~= life_now then is_same = is_same_life(stream, info, life) end
if before(field(info, 'last-generated-id'), boundary) or added_then and added < added_then
    or is_same == false then
  return refused('recreated')
end

-- The recorded set is trusted while it and the audit are as the last commit left them.
local audit_last, audit_ms = '0-0', 0
if redis.call('EXISTS', audit) == 1 then
  audit_last = field(redis.call('XINFO', 'STREAM', audit), 'last-generated-id')
  -- beyond 2^53 the number is not exact, but then it is far in the future in any case
  audit_ms = tonumber(audit_last:match('^%d+'))
end
if before(audit_last, ARGV[12]) then return refused('unaudited') end
if is_same == nil or audit_last ~= (audit_then or '0-0')
    or redis.call('ZCARD', recorded) ~= tonumber(count_then or 0) then
  return refused('forgotten')
end

local accepted, taken, rejected, vanished = {}, 0, {}, 0  -- `taken` are accepted
local function accept(r)
  taken = taken + 1
  accepted[taken] = r
end

-- New entries: whatever lies after the position is the group's to deliver. If some were deleted
-- meanwhile, XREADGROUP would go on to entries that nobody decided, past the boundary even:
-- so unless the counters rule that out, look which are there.
local function choose_new(after)
  -- Between the position and what was read next all may be deleted. If something is there, then the
  -- batch before this one was not committed, or somebody moved the position back.
  if before(position, after)
      and #redis.call('XRANGE', stream, '(' .. position, after, 'COUNT', 1) > 0 then
    return 'moved_back'
  end
  local passed = before(after, position)
  local there
  local is_whole = counters ~= '' and counters:match(' .*') == counters_then:match(' .*')
  if records > 0 and not is_whole then
    there = {}
    local found = {}
    if before(position, ids[records]) then
      found = redis.call('XRANGE', stream, '(' .. position, ids[records], 'COUNT', records)
    end
    for _, entry in ipairs(found) do there[entry[1]] = true end
  end
  for r = 1, records do
    local id = ids[r]
    if passed and not before(position, id) then
      rejected[#rejected + 1] = id
    elseif there == nil or there[id] then
      accept(r)
    else
      rejected[#rejected + 1] = id
      vanished = vanished + 1
    end
  end
end

-- Pending entries: XACK ignores ownership, so a drain that slept while another took its entries
-- over could acknowledge them a second time; and their owner may have come back to life.
local function choose_pending(min_idle)
  local mine, seen = {}, {}
  if ARGV[OWNERS + 1] == consumer then
    local rows = redis.call('XPENDING', stream, group, ids[1], ids[records], records, consumer)
    for _, row in ipairs(rows) do mine[row[1]] = true end
  end
  for r = 1, records do
    local id, holder = ids[r], ARGV[OWNERS + r]
    local ok = mine[id]
    if holder ~= consumer then
      local row = redis.call('XPENDING', stream, group, id, id, 1)[1]
      -- released by its consumer (XNACK, Redis 8.8) it idles for -1 ms and is nobody's
      ok = row and row[2] == holder and (row[3] < 0 or row[3] >= min_idle)
    end
    -- an id given twice would get two records
    if ok and not seen[id] then
      accept(r)
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

-- No entry is recorded twice for one consumer group, by whatever scopes, in whatever order.
local prefix = prefix_of(owner)
local first_key = taken > 0 and key_of(ids[accepted[1]])
local last_key = taken > 0 and key_of(ids[accepted[taken]])
local met = {}  -- new: what is recorded from the position to the batch's last
if kind == 'new' and taken > 0 then
  met = intervals(recorded, prefix, key_of(position), last_key, 8)
end
local fresh, n, had = {}, 0, {}
local at = 1
for i = 1, taken do
  local r = accepted[i]
  local is_recorded = false
  if kind == 'pending' then
    local key = key_of(ids[r])
    is_recorded = #intervals(recorded, prefix, key, key, 1) > 0
  elseif #met > 1 or #met == 1 and met[1].to >= first_key then
    local key = key_of(ids[r])
    while met[at] and met[at].to < key do at = at + 1 end
    is_recorded = met[at] ~= nil and met[at].from <= key
  end
  if is_recorded then
    had[#had + 1] = ids[r]
  elseif actions[r] == '' then
    return refused('forgotten')
  else
    n = n + 1
    fresh[n] = r
  end
end

-- Make intervals of the rows `list`, as few as can be. None may hold what has no record: neither an
-- entry that lies between, nor an id that is pending for the consumer group though its body is gone.
local MOST_BETWEEN, MOST_GAPS = 1000, 8
local function cover_batch(list, low)
  local is_none = group == owner and pending == 0
  local found = is_none and {}
    or redis.pcall('XPENDING', stream, owner, low, ids[list[#list]], MOST_BETWEEN)
  local others, mine, o = {}, {}, 1
  for _, r in ipairs(#found > 0 and list or {}) do mine[ids[r]] = true end
  for _, row in ipairs(found) do
    if not mine[row[1]] then others[#others + 1] = key_of(row[1]) end
  end
  -- nothing lies between the position and the batch's first, so it is joined to what ends there
  if kind == 'new' and #others == 0 and #found < MOST_BETWEEN then
    return cover(recorded, prefix, first_key, last_key, met)
  end
  local first, gaps = 1, 0
  for i = 1, #list do
    local id, next_id = ids[list[i]], ids[list[i + 1]]
    local is_end = not next_id or #found == MOST_BETWEEN or gaps == MOST_GAPS
    if not is_end then
      while others[o] and others[o] < key_of(id) do o = o + 1 end
      -- what lies between may be large, so it is looked at only until some gaps were found
      is_end = others[o] ~= nil and others[o] < key_of(next_id) or kind == 'pending'
        and #redis.call('XRANGE', stream, '(' .. id, '(' .. next_id, 'COUNT', 1) > 0
    end
    if is_end then
      local from, to = key_of(ids[list[first]]), key_of(id)
      cover(recorded, prefix, from, to, intervals(recorded, prefix, from, to, 8))
      first, gaps = i + 1, math.min(gaps + 1, MOST_GAPS)
    end
  end
end

-- Pace of all drains of the stream together. `log` holds (ms, count) of the last second by the
-- audit's ids; the clock of those ids and TIME can differ by 1 ms, which is kept as a guard.
-- Without a throttle at work, the commits of COARSE_MS count as if all came with the last of them:
-- hundreds in a second would take longer to note than to do.
-- `rates` are the throttles at work: heard of, or to be heard of, within HEARD_MS.
local GUARD, COARSE_MS, HEARD_MS = 1, 50, 10000
-- a state that was lost took its log with it: all of the last second may lie at the audit's end
if not pace and audit_ms > now_ms - 1000 - GUARD then pace = '0 ' .. int(audit_ms) .. ':1000000000' end
pace = pace or ''
local due = tonumber(pace:match('^%d+')) or 0
local log, rates = {}, {}
for ms, count in pace:gmatch(' (%d+):(%d+)') do
  ms, count = tonumber(ms), tonumber(count)
  if ms > now_ms - 1000 - GUARD then log[#log + 1] = {ms, count} end
end
for other, until_ms in pace:gmatch(' (%S+)@(%d+)') do
  -- one that would hold for longer is left from before the clock went back
  local left = until_ms - now_ms
  if left > 0 and left <= HEARD_MS then rates[other] = until_ms end
end
local function pace_after(wait_us)
  if rate ~= 'none' then
    local turn_us = math.max(1, n) / rate * 1000000
    local heard_ms = 1000 + math.ceil(math.max(wait_us, turn_us) / 1000)
    rates[rate] = int(now_ms + math.min(heard_ms, HEARD_MS))
  end
  local parts = {int(due)}
  for other, until_ms in pairs(rates) do parts[#parts + 1] = other .. '@' .. until_ms end
  for i = 1, #log do parts[#parts + 1] = int(log[i][1]) .. ':' .. int(log[i][2]) end
  return table.concat(parts, ' ')
end
-- of the throttles at work at once the lowest holds
local lowest = rate
for other in pairs(rates) do
  if lowest == 'none' or tonumber(other) < tonumber(lowest) then lowest = other end
end
local function waiting(us)
  return {'wait', int(now_us), int(math.ceil(us)), lowest, '', '', '0-0', '0', '0', '0'}
end
local function wait_reply(us)
  redis.call('HSET', state, 'pace', pace_after(us))
  return waiting(us)
end

-- us to wait until `n` more fit into a window of `width` ms that may hold `cap`
local function wait_for(width, cap, more)
  local sum = more
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

-- ids only grow: after the clock stepped back they would all fall into one millisecond, and
-- ids that are used up would fail in the middle of the batch
if n > 0 and audit_ms > now_ms + 1 then
  return waiting(math.min((audit_ms - now_ms) * 1000, 1e15))
end
if n > 0 and lowest ~= 'none' then
  local holds = tonumber(lowest)
  local gap = n / holds * 1000000
  local tenth = math.max(1, math.floor(holds / 5))
  if n > tenth then return wait_reply(0) end  -- too large for this rate: its sender makes it smaller
  -- A slower drain, gone by now, may have left a turn that is far off. After the last record this
  -- rate's largest batch is the most to wait for.
  due = math.min(due, (audit_ms + 1) * 1000 + tenth / holds * 1000000)
  local wait = math.max(
    due - now_us,
    wait_for(1000, math.ceil(holds), n),
    wait_for(100, tenth, n))
  if holds < 1 then
    wait = math.max(wait, (audit_ms + GUARD) * 1000 + gap - now_us)
    if wait <= 0 then due = now_us + gap end
  elseif wait <= 0 then
    -- The next turn follows the last by the clock, not by when it was taken. Of a delay up to 50 ms
    -- are made up for: a busy client then loses no rate, and the windows above keep the pace even.
    due = math.max(due, now_us - credit_us)
    if due > now_us + gap then due = now_us end
    -- a run's first: what whole milliseconds round off must not make its pace look faster
    due = due + gap + (credit_us == 0 and 2000 or 0)
  end
  if wait > 0 then return wait_reply(wait) end
end

-- Lua does not roll back. With all audit records first, whatever fails here leaves entries
-- unacknowledged and is seen by the first XADD, before anything changed. What is denied after the
-- XADDs (a right taken away meanwhile) would leave records that the next run writes again: so each
-- is tried first, on what cannot be there, and HSET before all, as OOM is only noticed by a script's
-- first write. A call without records does just this: it proves that a drain could work.
redis.call('HSET', state, 'pace', n > 0 and pace or pace_after(0))
redis.call('XACK', stream, group, '0-0')
redis.call('ZADD', recorded, 'XX', 0, '-')
redis.call('ZREM', recorded, '-')
local recorded_ms = 0
if taken > 0 then
  redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', 1, 'STREAMS', stream,
    '18446744073709551615-18446744073709551614')
  local call = redis.call
  for i = 1, n do
    local r = fresh[i]
    audit_last = call('XADD', audit, '*',
      'original_id', ids[r], 'symbol', symbols[r], 'age_sec', ages[r],
      'confidence', confidences[r], 'action', actions[r], 'drained_at_ts', drained_at,
      'reason', reasons[r], 'consumer_group', owner, 'run_id', run_id)
  end
  if kind == 'new' then
    local got = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', taken, 'NOACK',
      'STREAMS', stream, '>')
    local entries = got and got[1][2] or {}
    if #entries ~= taken or entries[1][1] ~= ids[accepted[1]]
        or entries[taken][1] ~= ids[accepted[taken]] then
      return refused('other')
    end
    cover_batch(accepted, '(' .. position)
    position = ids[accepted[taken]]
  end
  -- after the position was moved back new entries can be pending, which NOACK leaves them
  if kind == 'pending' or pending > 0
      and #redis.call('XPENDING', stream, group, ids[accepted[1]], position, 1) > 0 then
    local part = {}
    for i = 1, taken do
      part[#part + 1] = ids[accepted[i]]
      if #part == 1000 or i == taken then  -- unpack fails near 8,000 values
        redis.call('XACK', stream, group, unpack(part))
        part = {}
      end
    end
  end
  if kind == 'pending' and n > 0 then cover_batch(fresh, ids[fresh[1]]) end
  if n > 0 then
    recorded_ms = tonumber(audit_last:match('^%d+'))
    local ms = math.max(now_ms, recorded_ms)
    local newest = log[#log]
    local step = lowest == 'none' and COARSE_MS or 1
    if newest and math.floor(newest[1] / step) == math.floor(ms / step) then
      newest[1], newest[2] = ms, newest[2] + n
    else
      log[#log + 1] = {ms, n}
    end
  end
  local values = {'pace', pace_after(0), 'audit:' .. audit, audit_last, 'recorded',
    int(redis.call('ZCARD', recorded)), 'life', life_now}
  if kind == 'new' and group ~= owner then
    -- all of it: the state may have been lost since history_open.lua
    for _, value in ipairs({'history:' .. of_history(owner, group), position,
        'history_group:' .. group, 'made ' .. owner,
        'history_of:' .. owner, group}) do
      values[#values + 1] = value
    end
  end
  redis.call('HSET', state, unpack(values))
end

local reply = {'ok', int(now_us), int(math.max(0, due - now_us)), lowest, position, counters,
  audit_last, int(recorded_ms), int(vanished), int(#rejected)}
for i = 1, #rejected do reply[#reply + 1] = rejected[i] end
for i = 1, #had do reply[#reply + 1] = had[i] end
return reply
