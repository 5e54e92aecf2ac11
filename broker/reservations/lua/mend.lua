-- mend: see that the heads are those of the lanes.
--
-- KEYS as in the prelude
-- ARGV 4 position of the first head to look at   5 how many   6.. keys of lanes
-- Returns how many heads were missing or wrong.
-- Raises  GEN.
-- Again   nothing is left to mend.
local mended = 0
local function look(lane, said)
  local head = head_of(lane)
  local right = head and head.member .. ' ' .. lane
  if said and said ~= right then
    redis.call('ZREM', KEYS[7], said)
    mended = mended + 1
  end
  if right and tonumber(redis.call('ZSCORE', KEYS[7], right) or '') ~= head.rank then
    redis.call('ZADD', KEYS[7], head.rank, right)
    mended = mended + 1
  end
end
for _, entry in ipairs(redis.call('ZRANGE', KEYS[7], ARGV[4], ARGV[4] + ARGV[5] - 1)) do
  look(string.sub(entry, -16), entry)
end
for at = 6, #ARGV do look(ARGV[at]) end
return mended
