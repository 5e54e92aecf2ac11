-- promote: make scheduled jobs ready whose moment has come.
--
-- KEYS as in the prelude
-- ARGV 4 channel   5 queue   6 limit
-- Returns how many were promoted.
-- Raises  GEN.
-- Again   promotes what is due by then.
-- Leaves  an entry without a hash is removed.
local woken, count = promote(tonumber(ARGV[6]))
wake(ARGV[4], ARGV[5], woken)
return count
