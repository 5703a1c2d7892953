#!lua flags=allow-oom
-- Handshake, first step: close the partition, unless somebody else has moved since the caller looked.
--
-- KEYS
--   1 {pNN}:meta  hash
-- ARGV
--   1 seen_epoch  integer, the epoch that the caller saw, or empty
--   2 seen_next   text, `next` as the caller saw it, or empty
--   3 next        text, `<new epoch> <token>` of this attempt
-- RETURNS outcome, epoch, seq, recorded_epoch, recorded, loading, damaged; what is absent is empty
--   CLOSED   no serving script runs from here on: seq stands still
--   CHANGED  nothing was done
-- ERRORS none
local meta_key = KEYS[1]
local seen_epoch, seen_next, next = ARGV[1], ARGV[2], ARGV[3]

local meta = redis.call('HMGET', meta_key, 'epoch', 'seq', 'recorded_epoch', 'recorded', 'loading',
  'next', 'damaged')
local outcome = 'CHANGED'
if (meta[1] or '') == seen_epoch and (meta[6] or '') == seen_next then
  redis.call('HSET', meta_key, 'open', '0', 'next', next)
  outcome = 'CLOSED'
end
return { outcome, meta[1] or '', meta[2] or '', meta[3] or '', meta[4] or '', meta[5] or '',
  meta[7] or '' }
