-- Follows the prelude in scripts that look for the best ready job.

-- up to so many lanes, asking each of them is less than walking past all others
local few = 8

local function better(one, other)
  return one.rank < other.rank or (one.rank == other.rank and one.member < other.member)
end

-- the first ready job of each lane that a worker may see, best first, one a call; it may see 'only'
-- the named lanes or all 'but' them, 16 characters each
local function seen_heads(how, named)
  local listed, asked = {}, {}
  for at = 1, #named, 16 do listed[string.sub(named, at, at + 15)] = true end
  if how == 'only' and #named <= 16 * few then
    for lane in pairs(listed) do asked[#asked + 1] = head_of(lane) end
    table.sort(asked, better)
    local at = 0
    return function()
      at = at + 1
      return asked[at]
    end
  end
  local page, at, from, size = {}, 0, 0, 8
  return function()
    while true do
      if at == #page then
        page = redis.call('ZRANGE', KEYS[7], from, from + size - 1, 'WITHSCORES')
        if #page == 0 then return nil end
        at, from, size = 0, from + size, math.min(4 * size, 512)
      end
      local entry, rank = page[at + 1], page[at + 2]
      at = at + 2
      local lane = string.sub(entry, -16)
      if (listed[lane] or false) == (how == 'only') then
        return {lane = lane, member = string.sub(entry, 1, -18), rank = tonumber(rank)}
      end
    end
  end
end
