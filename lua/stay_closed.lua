#!lua flags=allow-oom
-- Handshake, of a partition whose stores do not agree: say why it stays closed.
--
-- KEYS
--   1 {pNN}:meta  hash
-- ARGV
--   1 next    text, `<epoch> <token>` of this attempt
--   2 reason  text, for the operator
-- RETURNS outcome
--   STAYS_CLOSED  the reason stands; a later start compares anew
--   CHANGED       the handshake is somebody else's by now; nothing was done
-- ERRORS none
local meta_key = KEYS[1]
local next, reason = ARGV[1], ARGV[2]

local meta = redis.call('HMGET', meta_key, 'open', 'next')
if meta[1] ~= '0' or meta[2] ~= next then
  return { 'CHANGED' }
end
redis.call('HSET', meta_key, 'reason', reason)
redis.call('HDEL', meta_key, 'next')
return { 'STAYS_CLOSED' }
