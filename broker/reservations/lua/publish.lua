#!lua flags=allow-oom
-- publish: make a generation that was just built the one that counts.
--
-- KEYS 1 building  string  the builder's own token, checked by the prelude in the place of gen
--      2..6 as in the prelude
-- ARGV 1 the token   4 pointer: the key that names the generation   5 generation   6 mark
-- Returns 1.
-- Raises  GEN  the duty to build was lost, by time or by a flush; the half-built index stays unread.
-- Again   GEN: the first one gave the duty back.
redis.call('SET', prefix .. 'mark', ARGV[6])
redis.call('SET', ARGV[4], ARGV[5])
redis.call('DEL', KEYS[1])
return 1
