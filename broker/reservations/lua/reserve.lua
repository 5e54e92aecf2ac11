-- reserve: hold the best ready jobs of the lanes a worker may see, for one claim.
--
-- KEYS as in the prelude
-- ARGV 4 lanes_ver  version of the lane table the caller matched against
--      5 lease_id   6 worker   7 hold_ms   8 how many at most
--      9 channel   10 queue    for wake-ups of jobs that fell due
--      11 how (only|but)   12 keys of lanes, 16 characters each
-- Returns {now_ms, leases and grants that are overdue, (job id, lane)...}, best first.
-- Raises  GEN; LANES the lane table has grown, match again.
-- Again   holds further jobs: never sent twice; what nobody confirms lapses after hold_ms.
-- Leaves  a head that is none any more is removed.
if (redis.call('GET', KEYS[6]) or '0') ~= ARGV[4] then
  return redis.error_reply('LANES moved')
end
wake(ARGV[9], ARGV[10], (promote(50)))
local answer = {tostring(now),
  redis.call('ZCOUNT', KEYS[3], '-inf', now) + redis.call('ZCOUNT', KEYS[4], '-inf', now)}
local next_head = seen_heads(ARGV[11], ARGV[12])
local first, opened = next_head(), {}
for _ = 1, tonumber(ARGV[8]) do
  local best
  repeat
    best = first
    for _, head in pairs(opened) do
      if not best or better(head, best) then best = head end
    end
    if not best then break end
    if best == first then first = next_head() end
    -- heads themselves change at the end alone: they are being walked
    touched[best.lane] = touched[best.lane] or best
    local there = redis.call('ZREM', lane_key(best.lane), best.member) == 1
    opened[best.lane] = head_of(best.lane)
  until there
  if not best then break end
  local id = string.sub(best.member, 18)
  redis.call('ZADD', KEYS[3], now + ARGV[7], id)
  local job, folded = recall(id)
  if folded then
    if job[2] then redis.call('HSET', job_key(id), 'ver', job[1], 'lane', job[2], 'member', job[3], 'rank', job[4]) end
    redis.call('HDEL', folded_key, id)
  end
  redis.call('HSET', job_key(id), 'lease', ARGV[5], 'worker', ARGV[6])
  answer[#answer + 1] = id
  answer[#answer + 1] = best.lane
end
settle()
return answer
