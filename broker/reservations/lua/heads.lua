-- heads: name the best ready job of the lanes a worker may see, holding nothing.
--
-- KEYS as in the prelude
-- ARGV 4 lanes_ver
--      5 channel   6 queue    for wake-ups of jobs that fell due
--      7 how (only|but)   8 keys of lanes, 16 characters each
-- Returns {rank, member}, or false when every lane is empty.
-- Raises  GEN; LANES the lane table has grown, match again.
-- Again   the same, unless the index moved on.
if (redis.call('GET', KEYS[6]) or '0') ~= ARGV[4] then
  return redis.error_reply('LANES moved')
end
wake(ARGV[5], ARGV[6], (promote(50)))
for best in seen_heads(ARGV[7], ARGV[8]) do
  if redis.call('ZSCORE', lane_key(best.lane), best.member) then
    return {tostring(best.rank), best.member}
  end
end
return false
