#!lua flags=allow-oom
-- Handshake, of a rebuild: remove some keys of the partition, and mark it so that it is rebuilt
-- again should this attempt die.
--
-- KEYS
--   1 {pNN}:meta  hash
--   then at most 1,000 keys of the partition, each of any type, but never meta
-- ARGV
--   1 next  text, `<epoch> <token>` of this attempt
-- RETURNS outcome
--   EMPTIED  the keys are gone
--   CHANGED  the handshake is somebody else's by now; nothing was done
-- ERRORS none
local meta_key = KEYS[1]
local next = ARGV[1]

local meta = redis.call('HMGET', meta_key, 'open', 'next')
if meta[1] ~= '0' or meta[2] ~= next then
  return { 'CHANGED' }
end
redis.call('HSET', meta_key, 'loading', '1')
for i = 2, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
return { 'EMPTIED' }
