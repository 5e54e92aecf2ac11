-- heads: name the best ready job of the given lanes, holding nothing.
--
-- KEYS as in the prelude
-- ARGV 4 lanes_ver
--      5 channel   6 queue    for wake-ups of jobs that fell due
--      7.. keys of lanes
-- Returns {rank, member}, or false when every lane is empty.
-- Raises  GEN; LANES the lane table has grown, match again.
-- Again   the same, unless the index moved on.
if (redis.call('GET', KEYS[6]) or '0') ~= ARGV[4] then
  return redis.error_reply('LANES moved')
end
wake(ARGV[5], ARGV[6], (promote(50)))
local best
for at = 7, #ARGV do
  local head = redis.call('ZRANGE', lane_key(ARGV[at]), 0, 0, 'WITHSCORES')
  if head[1] then
    local rank = tonumber(head[2])
    if not best or rank < best.rank or (rank == best.rank and head[1] < best.member) then
      best = {rank = rank, member = head[1]}
    end
  end
end
return best and {tostring(best.rank), best.member}
