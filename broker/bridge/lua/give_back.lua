-- give_back: put the messages of an inbox whose owner is gone back to the front of their queue.
--
-- KEYS 1 owner     string  token of the owner; gone with its lease
--      2 inbox     list
--      3 queue     list    the queue's first list
--
-- Returns how many went back; 0 also when the owner lives.
-- Again   a repeat finds the inbox empty.
if redis.call("EXISTS", KEYS[1]) == 1 then
    return 0
end
local moved = 0
while redis.call("LMOVE", KEYS[2], KEYS[3], "LEFT", "RIGHT") do
    moved = moved + 1
end
return moved
