#!lua flags=allow-oom
-- Tell Redis how far the record reaches in this epoch, and whoever waits for it. Runs when memory is
-- full, too: without it nothing could be trimmed.
--
-- KEYS
--   1 {pNN}:meta  hash
-- ARGV
--   1 recorded  integer, seq of this epoch up to which PostgreSQL has committed
--   2 channel   text, where `<epoch> <recorded>` is published
-- RETURNS OK, epoch, seq, clock, -, outcome
--   RAISED     the watermark was below
--   UNCHANGED  it was there already, or above
-- ERRORS UNINIT FENCED, each with epoch, seq, clock, reason
-- @include fence

local meta_key = KEYS[1]
local recorded, channel = ARGV[1], ARGV[2]

local now = clock()
local refusal, seq = fence(meta_key, now)
if refusal then
  return refusal
end

local outcome = 'UNCHANGED'
local held = redis.call('HMGET', meta_key, 'recorded_epoch', 'recorded')
if held[1] ~= EPOCH or tonumber(held[2]) < tonumber(recorded) then
  redis.call('HSET', meta_key, 'recorded_epoch', EPOCH, 'recorded', recorded)
  -- A message only saves time: one that may not be sent must not cost the watermark.
  redis.pcall('SPUBLISH', channel, EPOCH .. ' ' .. recorded)
  outcome = 'RAISED'
end
return { 'OK', EPOCH, text(seq), now, '-', outcome }
