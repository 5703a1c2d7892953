#!lua
-- Tell whether a change would be taken now. Writes nothing, and is declared as a script that may write: Redis
-- refuses it, as it refuses `book`, before its first line (OOM, READONLY, NOREPLICAS, MISCONF, BUSY).
--
-- KEYS
--   1 {pNN}:meta    hash
--   2 {pNN}:outbox  stream
-- ARGV
--   1 unrecorded_max  integer, changes; with so many that are not on record nothing is booked
-- RETURNS OK, epoch, seq, clock, -, outcome, recorded (seq of the watermark)
--   TAKES          a change would be taken
--   RECORD_BEHIND  too many changes are not on record
--   OUTBOX_AHEAD   the outbox refuses the id of the next change: it has had a greater one
-- ERRORS UNINIT FENCED, each with epoch, seq, clock, reason
-- @include fence

local meta_key, outbox_key = KEYS[1], KEYS[2]
local unrecorded_max = tonumber(ARGV[1])

local now = clock()
local refusal, seq, recorded = fence(meta_key, now)
if refusal then
  return refusal
end

-- Whether the greatest id that the outbox has had, of an entry that is gone as well, is beyond this seq.
local function is_ahead()
  if redis.call('EXISTS', outbox_key) == 0 then
    return false
  end
  local about = redis.call('XINFO', 'STREAM', outbox_key)
  for i = 1, #about, 2 do
    if about[i] == 'last-generated-id' then
      local epoch, last = string.match(about[i + 1], '^(%d+)-(%d+)$')
      local ahead = tonumber(epoch) - tonumber(EPOCH)
      return ahead > 0 or ahead == 0 and tonumber(last) > seq
    end
  end
end

local outcome = 'TAKES'
if is_ahead() then
  outcome = 'OUTBOX_AHEAD'
elseif seq - recorded >= unrecorded_max then
  outcome = 'RECORD_BEHIND'
end
return { 'OK', EPOCH, text(seq), now, '-', outcome, text(recorded) }
