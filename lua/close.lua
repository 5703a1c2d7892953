#!lua flags=allow-oom
-- Handshake, first step: close the partition, unless somebody else has moved since the caller looked.
--
-- KEYS
--   1 {pNN}:meta    hash
--   2 {pNN}:outbox  stream
-- ARGV
--   1 seen_epoch  integer, the epoch that the caller saw, or empty
--   2 seen_next   text, `next` as the caller saw it, or empty
--   3 next        text, `<new epoch> <token>` of this attempt
-- RETURNS outcome, epoch, seq, recorded_epoch, recorded, loading, first_id, last_id (of the outbox);
--   what is absent is empty
--   CLOSED   no serving script runs from here on: seq stands still
--   CHANGED  nothing was done
-- ERRORS none
local meta_key, outbox_key = KEYS[1], KEYS[2]
local seen_epoch, seen_next, next = ARGV[1], ARGV[2], ARGV[3]

local meta = redis.call('HMGET', meta_key, 'epoch', 'seq', 'recorded_epoch', 'recorded', 'loading',
  'next')
local outcome = 'CHANGED'
if (meta[1] or '') == seen_epoch and (meta[6] or '') == seen_next then
  redis.call('HSET', meta_key, 'open', '0', 'next', next)
  outcome = 'CLOSED'
end
local first = redis.call('XRANGE', outbox_key, '-', '+', 'COUNT', 1)
local last = redis.call('XREVRANGE', outbox_key, '+', '-', 'COUNT', 1)
return { outcome, meta[1] or '', meta[2] or '', meta[3] or '', meta[4] or '', meta[5] or '',
  first[1] and first[1][1] or '', last[1] and last[1][1] or '' }
