-- fill: put waiting jobs into a generation that nobody reads yet.
--
-- KEYS 1 building  string  the builder's own token, checked by the prelude in the place of gen
--      2..7 as in the prelude
-- ARGV 1 the token   4 how many specs of new lanes   5.. the specs
--      then sheaves of jobs alike in all but their members: lane, rank, ver, the moment they become
--      ready ("" at once), how many, members
-- Returns 1.
-- Raises  GEN  the duty to build was lost.
-- Again   the same: what was filled in before is overwritten.
local at = 5 + ARGV[4]
for spec = 5, at - 1 do add_lane(ARGV[spec]) end
while at < #ARGV do
  local lane, rank, ver, due = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local last = at + 4 + ARGV[at + 4]
  -- one command for many, but Lua's stack ends near 8,000 values
  local key, score, entries, folded = lane_key(lane), rank, {}, {}
  local text = ver .. ' ' .. rank .. ' ' .. lane .. ' '
  if due == '' then touch(lane) else key, score = KEYS[2], due end
  for number = at + 5, last do
    local member = ARGV[number]
    local id = string.sub(member, 18)
    entries[#entries + 1] = score
    if due == '' then
      -- a hash of its own costs Redis four times as much, most of it for its append-only file
      entries[#entries + 1] = member
      folded[#folded + 1] = id
      folded[#folded + 1] = text .. string.sub(member, 1, 16)
    else
      entries[#entries + 1] = id
      redis.call('HSET', job_key(id), 'ver', ver, 'lane', lane, 'member', member, 'rank', rank)
    end
    if #entries >= 1000 or number == last then
      redis.call('ZADD', key, unpack(entries))
      if due == '' then redis.call('HSET', folded_key, unpack(folded)) end
      entries, folded = {}, {}
    end
  end
  at = last + 1
end
settle()
return 1
