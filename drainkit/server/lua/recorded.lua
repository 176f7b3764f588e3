-- Which entries have their audit record: a sorted set of closed intervals of ids, for each consumer
-- group disjoint; all scores are 0. A member: `<length of the group's name>:<group>\0<end>\0<start>`,
-- ids as 20 + 20 digits, so that texts compare as ids do and groups do not mix.
-- Needs ids.lua before it.
local function key_of(id)
  local ms, seq = id:match('^(%d+)-(%d+)$')
  return ('0'):rep(20 - #ms) .. ms .. ('0'):rep(20 - #seq) .. seq
end
local function prefix_of(group) return #group .. ':' .. group .. '\0' end
local function member(prefix, from, to) return prefix .. to .. '\0' .. from end

-- The intervals that share an id with `low` to `high` (keys), ascending; read `page` at a time.
local function intervals(set, prefix, low, high, page)
  local found, after = {}, '[' .. prefix .. low
  while true do
    local members = redis.call('ZRANGEBYLEX', set, after, '(' .. prefix .. ':', 'LIMIT', 0, page)
    for _, text in ipairs(members) do
      local one = {member = text, from = text:sub(-40), to = text:sub(#prefix + 1, #prefix + 40)}
      if one.from > high then return found end
      found[#found + 1] = one
    end
    if #members < page then return found end
    after = '(' .. members[#members]
  end
end

-- Make one interval of `from` to `to` (keys) and of those that it meets (from `intervals`).
local function cover(set, prefix, from, to, met)
  for _, one in ipairs(met) do
    if one.from < from then from = one.from end
    if to < one.to then to = one.to end
    if one.from ~= from or one.to ~= to or #met > 1 then redis.call('ZREM', set, one.member) end
  end
  redis.call('ZADD', set, 0, member(prefix, from, to))
end

-- What tells one life of the stream from another: entries ever added, how many of them are gone,
-- the last id, and the last entry's id and a sum of how it begins ("-" in an empty stream).
local function sum_of(entry)
  local parts = {}
  for i = 1, math.min(#entry[2], 32) do parts[i] = entry[2][i]:sub(1, 64) end
  return redis.sha1hex(table.concat(parts, '\0'))
end
local function life_of(info)
  local last, added = field(info, 'last-entry'), field(info, 'entries-added')
  local mark = last and last[1] .. ' ' .. sum_of(last) or '- -'
  local gone = added and int(added - field(info, 'length')) or '-'
  return table.concat({added and int(added) or '-', gone, field(info, 'last-generated-id'), mark}, ' ')
end
-- Whether the stream, as XINFO STREAM says now, is the one that had the life `then_`; nil: it can be.
local function is_same_life(stream, info, then_)
  local added, gone, last_id, id, sum = then_:match('^(%S+) (%S+) (%S+) (%S+) (%S+)$')
  if not added then return true end  -- none is known
  local now, length = field(info, 'entries-added'), field(info, 'length')
  if before(field(info, 'last-generated-id'), last_id) then return false end
  if now and added ~= '-' and now < tonumber(added) then return false end
  local first, last = field(info, 'first-entry'), field(info, 'last-entry')
  -- ids only grow: what is not after the last id of then was there then
  local is_there = first and not before(last_id, first[1])
  if id == '-' then return not is_there end
  local found = last and last[1] == id and last or redis.call('XRANGE', stream, id, id)[1]
  if found then return sum_of(found) == sum end
  -- it was deleted since; then more entries are gone than were
  if now and gone ~= '-' and now - length <= tonumber(gone) then return false end
  if is_there then return nil end
  return true  -- of what was recorded nothing is there
end
