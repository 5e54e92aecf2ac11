-- Prepended to every script: the generation check, the clock and what all scripts share.
--
-- KEYS 1 gen        string  generation these keys belong to
--      2 scheduled  zset    job id by the moment it becomes ready
--      3 granting   zset    job id by the moment an untaken grant lapses
--      4 reserved   zset    job id by the moment its lease ends
--      5 lanes      zset    spec of each lane by the version it came with
--      6 lanes_ver  string  counts lanes
-- ARGV 1 gen        generation the caller believes in
--      2 prefix     of all keys of this generation: lane:<key> zset, job:<id> hash (same hash tag)
--      3 now_ms     "" for the server's clock; a number is for tests
-- Raises GEN        the index was lost or rebuilt; ask again with the new generation
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return redis.error_reply('GEN ' .. ARGV[1])
end
local prefix = ARGV[2]
local now = tonumber(ARGV[3])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

local function job_key(id) return prefix .. 'job:' .. id end
local function lane_key(lane) return prefix .. 'lane:' .. lane end
local index_key = {scheduled = KEYS[2], granting = KEYS[3], reserved = KEYS[4]}

-- take a job out of whichever index it lies in
local function unindex(id, lane, member)
  redis.call('ZREM', KEYS[2], id)
  redis.call('ZREM', KEYS[3], id)
  redis.call('ZREM', KEYS[4], id)
  if lane then redis.call('ZREM', lane_key(lane), member) end
end

-- make due scheduled jobs ready; answers how many came to each lane
local function promote(limit)
  local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, limit)
  local woken = {}
  for _, id in ipairs(due) do
    local job = redis.call('HMGET', job_key(id), 'lane', 'member', 'rank')
    redis.call('ZREM', KEYS[2], id)
    if job[1] then
      redis.call('ZADD', lane_key(job[1]), job[3], job[2])
      woken[job[1]] = (woken[job[1]] or 0) + 1
    end
  end
  return woken, #due
end

-- tell waiting claims that lanes have got jobs; nobody while there is no channel
local function wake(channel, queue, woken)
  if channel == '' then return end
  for lane, n in pairs(woken) do
    redis.call('PUBLISH', channel, cjson.encode({queue = queue, lane = lane, n = n}))
  end
end
