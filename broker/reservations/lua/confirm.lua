#!lua flags=allow-oom
-- confirm: the ledger has granted what reserve held; give it its deadline.
--
-- KEYS as in the prelude
-- ARGV 4 lease_id   5 index (granting: lapses unless taken up | reserved)   6 hold_ms from now
--      7 lease_ms   8.. three a job: id, ver, json of the job
-- Returns how many jobs were still held by this lease.
-- Raises  GEN.
-- Again   the deadline counts from now.
local confirmed = 0
for at = 8, #ARGV, 3 do
  local id, key = ARGV[at], job_key(ARGV[at])
  if redis.call('HGET', key, 'lease') == ARGV[4] then
    redis.call('ZREM', KEYS[3], id)
    redis.call('ZADD', ARGV[5] == 'granting' and KEYS[3] or KEYS[4], now + ARGV[6], id)
    redis.call('HSET', key, 'ver', ARGV[at + 1], 'json', ARGV[at + 2], 'lease_ms', ARGV[7])
    redis.call('HDEL', key, 'expiring', 'cancel')
    confirmed = confirmed + 1
  end
end
return confirmed
