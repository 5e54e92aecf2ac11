-- Prepended to every script: the generation check, the clock and what all scripts share.
--
-- KEYS 1 gen        string  generation these keys belong to
--      2 scheduled  zset    job id by the moment it becomes ready
--      3 granting   zset    job id by the moment an untaken grant lapses
--      4 reserved   zset    job id by the moment its lease ends
--      5 lanes      zset    spec of each lane by the version it came with
--      6 lanes_ver  string  counts lanes
--      7 heads      zset    first ready job of each lane by its rank: its member, a space, the lane
-- ARGV 1 gen        generation the caller believes in
--      2 prefix     of all keys of this generation: lane:<key> zset, job:<id> and folded hashes (same
--                   hash tag)
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
local folded_key = prefix .. 'folded'
local index_key = {scheduled = KEYS[2], granting = KEYS[3], reserved = KEYS[4]}

local function head_of(lane)
  local found = redis.call('ZRANGE', lane_key(lane), 0, 0, 'WITHSCORES')
  if not found[1] then return nil end
  return {lane = lane, member = found[1], rank = tonumber(found[2])}
end

-- lanes whose ready jobs this script changes, with the head each had; `settle` ends every change
local touched = {}
local function touch(lane)
  if touched[lane] == nil then touched[lane] = head_of(lane) or false end
end

local function settle()
  for lane, old in pairs(touched) do
    local new = head_of(lane)
    if old and (not new or new.member ~= old.member) then
      redis.call('ZREM', KEYS[7], old.member .. ' ' .. lane)
    end
    -- of an unchanged one too: it may be missing
    if new then redis.call('ZADD', KEYS[7], new.rank, new.member .. ' ' .. lane) end
  end
  touched = {}
end

local function add_ready(lane, rank, member)
  touch(lane)
  redis.call('ZADD', lane_key(lane), rank, member)
end

local function add_lane(spec)
  if not redis.call('ZSCORE', KEYS[5], spec) then
    redis.call('ZADD', KEYS[5], redis.call('INCR', KEYS[6]), spec)
  end
end

-- what is known of a job: {ver, lane, member, rank, lease}, and whether it lies folded: one that
-- waits since a rebuild does so beside all others, in a hash for all, until a script changes it
local function recall(id)
  local job = redis.call('HMGET', job_key(id), 'ver', 'lane', 'member', 'rank', 'lease')
  if job[2] then return job, false end
  local folded = redis.call('HGET', folded_key, id)
  if not folded then return job, false end
  local ver, rank, lane, seq = string.match(folded, '^(%d+) (%-?%d+) (%x+) (%d+)$')
  if not ver then return job, true end
  return {job[1] or ver, lane, seq .. ':' .. id, rank, job[5]}, true
end

-- take a job out of whichever index it lies in
local function unindex(id, lane, member)
  redis.call('ZREM', KEYS[2], id)
  redis.call('ZREM', KEYS[3], id)
  redis.call('ZREM', KEYS[4], id)
  if lane then
    touch(lane)
    redis.call('ZREM', lane_key(lane), member)
  end
end

-- make due scheduled jobs ready; answers how many came to each lane
local function promote(limit)
  local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, limit)
  local woken = {}
  for _, id in ipairs(due) do
    local job = redis.call('HMGET', job_key(id), 'lane', 'member', 'rank')
    redis.call('ZREM', KEYS[2], id)
    if job[1] then
      add_ready(job[1], job[3], job[2])
      woken[job[1]] = (woken[job[1]] or 0) + 1
    end
  end
  settle()
  return woken, #due
end

-- tell waiting claims that lanes have got jobs; nobody while there is no channel
local function wake(channel, queue, woken)
  if channel == '' then return end
  for lane, n in pairs(woken) do
    redis.call('PUBLISH', channel, cjson.encode({queue = queue, lane = lane, n = n}))
  end
end
