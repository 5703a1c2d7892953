#!lua
-- Forget the callers (workers that are gone) that made no call for an hour.
--
-- KEYS
--   1 {pNN}:meta   hash
--   2 {pNN}:calls  hash
-- ARGV none
-- RETURNS OK, epoch, seq, clock, -, outcome
--   FORGOTTEN  whatever was idle is gone
-- ERRORS UNINIT FENCED, each with epoch, seq, clock, reason
-- @include fence

local meta_key, calls_key = KEYS[1], KEYS[2]
local idle_us = 3600 * 1000000

local now = clock()
local refusal, seq = fence(meta_key, now)
if refusal then
  return refusal
end

local calls = redis.call('HGETALL', calls_key)
for i = 1, #calls, 2 do
  local at = tonumber(string.match(calls[i + 1], '^%d+ (%d+) '))
  if tonumber(now) - at > idle_us then
    redis.call('HDEL', calls_key, calls[i])
  end
end
return { 'OK', EPOCH, text(seq), now, '-', 'FORGOTTEN' }
