-- fetch: move the next messages of a queue into an inbox, best priority first, oldest first.
--
-- KEYS 1 owner     string  token of who owns the inbox, alive while its lease is
--      2 inboxes   zset    every inbox by when it was last used, epoch s
--      3 inbox     list    newest left; what is ingested is trimmed from the right
--      4..n        list    the queue's lists, first served first
-- ARGV 1 token     who asks
--      2 lease_ms
--      3 member    the inbox's name among the inboxes
--      4 limit     messages
--      5 bytes     stop after as many
--
-- Returns the messages moved, oldest first.
-- Again   a repeat moves more; what a lost answer moved is found by reading the inbox.
redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[2])
redis.call("ZADD", KEYS[2], redis.call("TIME")[1], ARGV[3])
local moved, bytes = {}, 0
for at = 4, #KEYS do
    while #moved < tonumber(ARGV[4]) and bytes < tonumber(ARGV[5]) do
        local raw = redis.call("LMOVE", KEYS[at], KEYS[3], "RIGHT", "LEFT")
        if not raw then
            break
        end
        moved[#moved + 1] = raw
        bytes = bytes + #raw
    end
end
return moved
