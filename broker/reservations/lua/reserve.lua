-- reserve: hold the best ready jobs of the given lanes for one claim.
--
-- KEYS as in the prelude
-- ARGV 4 lanes_ver  version of the lane table the caller matched against
--      5 lease_id   6 worker   7 hold_ms   8 how many at most
--      9 channel   10 queue    for wake-ups of jobs that fell due
--      11.. keys of the lanes the worker may see
-- Returns {now_ms, leases and grants that are overdue, job id...}, best first.
-- Raises  GEN; LANES the lane table has grown, match again.
-- Again   holds further jobs: never sent twice; what nobody confirms lapses after hold_ms.
if (redis.call('GET', KEYS[6]) or '0') ~= ARGV[4] then
  return redis.error_reply('LANES moved')
end
wake(ARGV[9], ARGV[10], (promote(50)))
local heads = {}
local function look(lane)
  local head = redis.call('ZRANGE', lane_key(lane), 0, 0, 'WITHSCORES')
  heads[lane] = head[1] and {member = head[1], rank = tonumber(head[2])} or nil
end
for at = 11, #ARGV do look(ARGV[at]) end
local answer = {tostring(now),
  redis.call('ZCOUNT', KEYS[3], '-inf', now) + redis.call('ZCOUNT', KEYS[4], '-inf', now)}
for _ = 1, tonumber(ARGV[8]) do
  local best
  for lane, head in pairs(heads) do
    local other = best and heads[best]
    if not best or head.rank < other.rank
        or (head.rank == other.rank and head.member < other.member) then best = lane end
  end
  if not best then break end
  local id = string.sub(heads[best].member, 18)
  redis.call('ZREM', lane_key(best), heads[best].member)
  redis.call('ZADD', KEYS[3], now + ARGV[7], id)
  redis.call('HSET', job_key(id), 'lease', ARGV[5], 'worker', ARGV[6])
  answer[#answer + 1] = id
  look(best)
end
return answer
