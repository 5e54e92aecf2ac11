-- settle_inbox: forget the oldest messages of an inbox, and hand some of them to another queue.
--
-- KEYS 1 owner     string  token of who owns the inbox
--      2 inbox     list
--      3 queue     list    where the given messages go
-- ARGV 1 token     who asks
--      2 n         how many of the oldest are settled
--      3..         messages for KEYS[3]
--
-- Returns 1, or 0 when the inbox is no longer the caller's: nothing was done.
-- Again   must not be repeated blindly: read the inbox instead.
if redis.call("GET", KEYS[1]) ~= ARGV[1] then
    return 0
end
for at = 3, #ARGV do
    redis.call("LPUSH", KEYS[3], ARGV[at])
end
redis.call("LTRIM", KEYS[2], 0, -1 - tonumber(ARGV[2]))
return 1
