-- Remove the oldest entries, up to `last` and just those that were shown, if no group needs them.
-- Needs ids.lua before it.
-- KEYS: stream
-- ARGV: last id, the id after it, number of entries, SHA-1 of their ids (each with a line feed),
--       "1" if a stream without groups may be trimmed
-- Returns {"ok", number removed}; or, with nothing changed: {"held", group, id}, {"no_groups"},
-- {"changed"}, {"gone"}.
local stream, last, after, count = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])

if redis.call('TYPE', stream).ok ~= 'stream' then return {'gone'} end

local groups = redis.call('XINFO', 'GROUPS', stream)
if #groups == 0 and ARGV[5] ~= '1' then return {'no_groups'} end
for _, info in ipairs(groups) do
  local field = {}
  for i = 1, #info, 2 do field[info[i]] = info[i + 1] end
  local position = field['last-delivered-id']
  if before(position, last) then return {'held', field['name'], position} end
  if field['pending'] > 0 then
    local lowest = redis.call('XPENDING', stream, field['name'], '-', last, 1)[1]
    if lowest then return {'held', field['name'], lowest[1]} end
  end
end

local ids = {}
for _, entry in ipairs(redis.call('XRANGE', stream, '-', last, 'COUNT', count + 1)) do
  ids[#ids + 1] = entry[1] .. '\n'
end
-- one more than shown would show here as well: XTRIM removes all that comes before
if redis.sha1hex(table.concat(ids)) ~= ARGV[4] then return {'changed'} end
return {'ok', redis.call('XTRIM', stream, 'MINID', '=', after)}
