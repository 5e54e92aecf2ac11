#!lua flags=allow-oom
-- confirm: the ledger has granted what reserve held; give it its deadline.
--
-- KEYS as in the prelude
-- ARGV 4 lease_id   5 index (granting: lapses unless taken up | reserved)   6 hold_ms from now
--      7 lease_ms   8.. three a job: id, ver, json of the job
-- Returns how many jobs were still held by this lease.
-- Raises  GEN.
-- Again   an untaken grant's deadline counts from now; a lease that was taken up stays as it is, and
--         so does what the ledger has said since (a higher ver, perhaps a cancel request).
local confirmed = 0
for at = 8, #ARGV, 3 do
  local id, key = ARGV[at], job_key(ARGV[at])
  local old = redis.call('HMGET', key, 'lease', 'ver')
  if old[1] == ARGV[4] then
    if redis.call('ZREM', KEYS[3], id) == 1 then
      redis.call('ZADD', index_key[ARGV[5]], now + ARGV[6], id)
    end
    if tonumber(old[2] or '-1') < tonumber(ARGV[at + 1]) then
      redis.call('HSET', key, 'ver', ARGV[at + 1], 'json', ARGV[at + 2], 'lease_ms', ARGV[7])
      redis.call('HDEL', key, 'expiring', 'cancel')
    end
    confirmed = confirmed + 1
  end
end
return confirmed
