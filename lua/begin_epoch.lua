#!lua flags=allow-oom
-- Handshake, last step: begin the epoch that is on record, and open the partition.
--
-- KEYS
--   1 {pNN}:meta    hash
--   2 {pNN}:calls   hash
--   3 {pNN}:outbox  stream
--   then four for each event that is frozen no more: what Redis holds of it may lack what was put
--   on record since, and so goes
--     {pNN}:event:<id>         hash
--     {pNN}:users:<id>         hash
--     {pNN}:waiting_list:<id>  list
--     {pNN}:gaps:<id>          zset
-- ARGV
--   1 next            text, `<epoch> <token>` of this attempt
--   2 epoch           integer
--   3 beginning       integer, the seq after which the epoch begins
--   4 predecessor     integer, the epoch of the change with that seq; 0 before the first
--   5 recorded_epoch  integer, of the record's cursor
--   6 recorded        integer, seq of the record's cursor
--   7 frozen          text, the ids of the events that are frozen on record, `<id> <id> ...`
-- RETURNS outcome
--   BEGUN    the partition is open
--   CHANGED  the handshake is somebody else's by now; nothing was done
-- ERRORS none; an outbox that is ahead of the id refuses it, and then nothing was done
local meta_key, calls_key, outbox_key = KEYS[1], KEYS[2], KEYS[3]
local next, epoch, beginning, predecessor, recorded_epoch, recorded, frozen =
  ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]

local meta = redis.call('HMGET', meta_key, 'open', 'next', 'newest_event')
if meta[1] ~= '0' or meta[2] ~= next then
  return { 'CHANGED' }
end
local time = redis.call('TIME')
local now = time[1] .. string.format('%06d', time[2])
local seq = string.format('%.0f', tonumber(beginning) + 1)
-- An attempt that died in the middle of this script has left its entry: the very same.
local last = redis.call('XREVRANGE', outbox_key, '+', '-', 'COUNT', 1)
if not last[1] or last[1][1] ~= epoch .. '-' .. seq then
  redis.call('XADD', outbox_key, epoch .. '-' .. seq, 'v', '2', 'at', now, 'first', seq, 'changes',
    'epoch_began - - {"beginning":' .. beginning .. ',"predecessor":' .. predecessor .. '}')
end
redis.call('DEL', calls_key)
redis.call('HSET', meta_key, 'epoch', epoch, 'seq', seq, 'recorded_epoch', recorded_epoch,
  'recorded', recorded, 'open', '1')
redis.call('HDEL', meta_key, 'next', 'loading', 'reason', 'frozen', 'damaged')
if meta[3] then
  redis.call('HSET', meta_key, 'used_events', meta[3])
end
if frozen ~= '' then
  redis.call('HSET', meta_key, 'frozen', frozen)
end
for i = 4, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
return { 'BEGUN' }
