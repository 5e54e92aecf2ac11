-- admit: put jobs into the index where the ledger says they belong.
--
-- KEYS as in the prelude
-- ARGV 4 channel, 5 queue   for wake-ups
--      6 force              "1": the ledger was read after this index was found wrong
--      7.. thirteen a job: id, index (ready|scheduled|granting|reserved), at_ms, ver, lane, spec,
--          member, rank, and of a held one lease_id, worker, lease_ms, cancel, json
-- Returns how many jobs changed place.
-- Raises  GEN.
-- Again   nothing changes: a job of this version that lies in an index stays where it is, and one
--         that keeps its lease keeps its deadline.
local width = 13
local woken, changed = {}, 0
for at = 7, #ARGV, width do
  local id, index, due, ver = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local lane, spec, member, rank = ARGV[at + 4], ARGV[at + 5], ARGV[at + 6], ARGV[at + 7]
  local lease, worker, lease_ms = ARGV[at + 8], ARGV[at + 9], ARGV[at + 10]
  local cancel, json = ARGV[at + 11], ARGV[at + 12]
  local key = job_key(id)
  local old, folded = recall(id)
  local known = tonumber(old[1] or '-1')
  local held = redis.call('ZSCORE', KEYS[3], id) or redis.call('ZSCORE', KEYS[4], id)
  local placed = held or redis.call('ZSCORE', KEYS[2], id)
      or (old[2] and redis.call('ZSCORE', lane_key(old[2]), old[3]))
  local holds = index == 'reserved' or index == 'granting'
  local same_lease = holds and held and old[5] == lease
  if known <= ver and not (known == ver and placed and ARGV[6] ~= '1') then
    if not same_lease or ARGV[6] == '1' then
      unindex(id, old[2], old[3])
      if index == 'ready' then
        add_ready(lane, rank, member)
        woken[lane] = (woken[lane] or 0) + 1
      else
        redis.call('ZADD', index_key[index], due, id)
      end
      changed = changed + 1
    end
    redis.call('HSET', key, 'ver', ver, 'lane', lane, 'member', member, 'rank', rank)
    if folded then redis.call('HDEL', folded_key, id) end
    redis.call('HDEL', key, 'lease', 'worker', 'lease_ms', 'cancel', 'expiring', 'json')
    if holds then
      redis.call('HSET', key, 'lease', lease, 'worker', worker, 'lease_ms', lease_ms,
        'cancel', cancel, 'json', json)
    end
    add_lane(spec)
  elseif known == ver and old[2] == lane then
    add_lane(spec) -- the table may have lost it
  end
end
settle()
wake(ARGV[4], ARGV[5], woken)
return changed
