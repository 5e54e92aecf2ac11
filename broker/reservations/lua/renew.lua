#!lua flags=allow-oom
-- renew: extend the lease of a job by a heartbeat, or take its grant up by any other call.
--
-- KEYS as in the prelude
-- ARGV 4 id   5 lease_id ("" from a client that has none)   6 worker
--      7 lease_ms ("" only takes the grant up, for as long as it was granted)
--      8 progress, json as the holder said it ("" leaves what was said before); when it is new, the
--        job is named among the progressed
-- Returns {deadline_ms, json of the job, json of a cancel request or ""}, or false when the
--         ledger has to say: unknown here, held by another, not yet confirmed, or expiring.
-- Raises  GEN.
-- Again   the deadline counts from now.
local id, key = ARGV[4], job_key(ARGV[4])
local job = redis.call('HMGET', key, 'lease', 'worker', 'expiring', 'json', 'lease_ms', 'cancel')
if job[2] ~= ARGV[6] or (ARGV[5] ~= '' and job[1] ~= ARGV[5]) or job[3] or not job[4] then
  return false
end
local granting = redis.call('ZSCORE', KEYS[3], id)
local reserved = redis.call('ZSCORE', KEYS[4], id)
if not granting and not reserved then return false end
local lease_ms = ARGV[7]
if lease_ms == '' then
  if not granting then return {reserved, job[4], job[6] or ''} end
  lease_ms = job[5]
end
redis.call('ZREM', KEYS[3], id)
redis.call('ZADD', KEYS[4], now + lease_ms, id)
if ARGV[8] ~= '' then
  local said = (job[1] or '') .. ' ' .. ARGV[8]
  if redis.call('HGET', key, 'progress') ~= said then
    redis.call('HSET', key, 'progress', said)
    redis.call('SADD', prefix .. 'progressed', id)
  end
end
return {tostring(now + lease_ms), job[4], job[6] or ''}
