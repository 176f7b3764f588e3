-- Stream ids and numbers, for the scripts that follow.
-- Ids are compared as texts: 64 bits do not fit a Lua number
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
local function int(number) return string.format('%.0f', number) end
-- What a consumer group's scope history with this group is called in the state.
local function of_history(owner, group) return owner .. '\0' .. group end
-- The value of a name in a flat reply
local function field(reply, name)
  for i = 1, #reply, 2 do
    if reply[i] == name then return reply[i + 1] end
  end
end
