#!lua flags=allow-oom
-- Handshake: carry on an attempt that died between the two stores, under a token of one's own.
--
-- KEYS
--   1 {pNN}:meta  hash
-- ARGV
--   1 seen_next  text, `<epoch> <token>` of the attempt that died
--   2 next       text, `<the same epoch> <token>` of this attempt
-- RETURNS outcome
--   RESUMED  the attempt is this caller's
--   CHANGED  nothing was done
-- ERRORS none
local meta_key = KEYS[1]
local seen_next, next = ARGV[1], ARGV[2]

local meta = redis.call('HMGET', meta_key, 'open', 'next')
if meta[1] ~= '0' or meta[2] ~= seen_next then
  return { 'CHANGED' }
end
redis.call('HSET', meta_key, 'next', next)
return { 'RESUMED' }
