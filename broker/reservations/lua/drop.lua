#!lua flags=allow-oom
-- drop: forget jobs that have ended.
--
-- KEYS as in the prelude
-- ARGV 4.. two a job: id, ver
-- Returns how many jobs were known; if any, it tells the channel {db:}:ended.
-- Raises  GEN.
-- Again   nothing; what the ledger has moved on since (a higher ver) stays.
local dropped = 0
for at = 4, #ARGV, 2 do
  local id = ARGV[at]
  local old, folded = recall(id)
  if tonumber(old[1] or '-1') <= tonumber(ARGV[at + 1]) then
    unindex(id, old[2], old[3])
    redis.call('DEL', job_key(id))
    if folded then redis.call('HDEL', folded_key, id) end
    if old[1] then dropped = dropped + 1 end
  end
end
settle()
if dropped > 0 then redis.call('PUBLISH', '{db:}:ended', dropped) end
return dropped
