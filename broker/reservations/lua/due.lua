#!lua flags=allow-oom
-- due: name grants and leases past their deadline, for the ledger to end them.
--
-- KEYS as in the prelude
-- ARGV 4 limit   5 again_ms: when to name them again if nobody finished
-- Returns {now_ms, (id, lease_id, granting|reserved)...}
-- Raises  GEN.
-- Again   names what is overdue by then; each is flagged, so that a heartbeat asks the ledger.
-- Leaves  an entry without a hash is removed.
local answer = {tostring(now)}
for at, index in ipairs({'granting', 'reserved'}) do
  local ids = redis.call('ZRANGEBYSCORE', KEYS[at + 2], '-inf', now, 'LIMIT', 0, ARGV[4])
  for _, id in ipairs(ids) do
    local lease = redis.call('HGET', job_key(id), 'lease')
    if lease then
      redis.call('HSET', job_key(id), 'expiring', '1')
      redis.call('ZADD', KEYS[at + 2], now + ARGV[5], id)
    else
      redis.call('ZREM', KEYS[at + 2], id)
    end
    answer[#answer + 1] = id
    answer[#answer + 1] = lease or ''
    answer[#answer + 1] = index
  end
end
return answer
