#!lua flags=allow-oom
-- Handshake, before an epoch begins on nothing: remove some keys of the partition. A rebuild is marked,
-- so that it is done again should this attempt die.
--
-- KEYS
--   1 {pNN}:meta  hash
--   then at most 1,000 keys of the partition, each of any type, but never meta
-- ARGV
--   1 next     text, `<epoch> <token>` of this attempt
--   2 loading  1 in a rebuild, else 0
--   3 last     1 where nothing is left but meta: the last key is the index, which begins anew, else 0
-- RETURNS outcome
--   EMPTIED  the keys are gone
--   CHANGED  the handshake is somebody else's by now; nothing was done
-- ERRORS none
local meta_key = KEYS[1]
local next, loading, last = ARGV[1], ARGV[2], ARGV[3]

local meta = redis.call('HMGET', meta_key, 'open', 'next')
if meta[1] ~= '0' or meta[2] ~= next then
  return { 'CHANGED' }
end
if loading == '1' then
  redis.call('HSET', meta_key, 'loading', '1')
end
for i = 2, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
if last == '1' then
  redis.call('SADD', KEYS[#KEYS], 'complete')
end
return { 'EMPTIED' }
