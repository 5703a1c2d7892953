#!lua
-- Open events that were drawn on record: from here on they can be booked.
--
-- KEYS
--   1 {pNN}:meta    hash
--   2 {pNN}:calls   hash
--   3 {pNN}:outbox  stream
--   then four for each event
--     {pNN}:event:<id>         hash
--     {pNN}:users:<id>         hash
--     {pNN}:waiting_list:<id>  list
--     {pNN}:gaps:<id>          zset
--   then, the last
--     {pNN}:events  set
-- ARGV
--   1 caller       text, `<worker>:<script>`
--   2 number       integer, 1 and up, of this caller's call
--   3 latest       integer, microseconds of Redis's clock after which the call is refused
--   4 unrecorded_max  integer, changes; with so many that are not on record nothing is changed
--   5 awaited      1 when an item waits for the record, else 0
--   6 event_count  integer, 1..256
--   then event_count event ids (text)
--   then for each item, at most 256
--     event        integer, 1..event_count, the place of the item's event among the ids
--     capacity     integer, 1..10,000,000 tickets
--     name         text
--     details      JSON on one line, what the change says on record
-- RETURNS OK, epoch, seq, clock, -, then for each item three words: outcome, seq, created_at
--   OPENED         seq of the opening, its time in microseconds
--   RECORD_BEHIND  0, 0; too many changes are not on record
--   EXISTS         the greatest id that was ever opened here, 0; Redis knows this id, or is loading
--                  it, or it is not above all that were opened before this epoch, of which Redis
--                  may know no more: the caller draws another, above that id
-- ERRORS UNINIT FENCED STALE_CALL LATE, each with epoch, seq, clock, reason
--   `DAMAGED <why>` is an error reply: a write after the entry failed, and the partition is closed
-- @include fence
-- @include numbered
-- @include outbox

local meta_key, calls_key, outbox_key = KEYS[1], KEYS[2], KEYS[3]
local caller, number, latest, unrecorded_max, awaited, event_count =
  ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])

local now = clock()
local refusal, seq, recorded = fence(meta_key, now)
if refusal then
  return refusal
end
local again = repeated(calls_key, caller, number, latest, now, seq)
if again then
  return again
end

-- A record that was put back draws ids again. Of those that were opened in this epoch Redis still
-- holds the events; a rebuild has emptied it of the older ones, and so they have a bound.
local ids = redis.call('HMGET', meta_key, 'newest_event', 'used_events')
local newest, used = tonumber(ids[1] or '0'), tonumber(ids[2] or '0')

local reply, changes, opened, taken = { 'OK', EPOCH, '', now, '-' }, {}, {}, {}
for at = 7 + event_count, #ARGV, 4 do
  local place = tonumber(ARGV[at])
  local capacity, name, details = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local event_key = KEYS[4 + 4 * (place - 1)]
  local outcome, change_seq, created_at = '', '0', '0'
  local id = tonumber(ARGV[6 + place])
  if taken[event_key] or id <= used or redis.call('EXISTS', event_key) == 1 then
    outcome, change_seq = 'EXISTS', text(math.max(newest, used))
  elseif seq - recorded >= unrecorded_max then
    outcome = 'RECORD_BEHIND'
  else
    taken[event_key] = true
    newest = math.max(newest, id)
    seq = seq + 1
    outcome, change_seq, created_at = 'OPENED', text(seq), now
    opened[#opened + 1] = { event_key, capacity, name, ARGV[6 + place] }
    changes[#changes + 1] = 'opened ' .. ARGV[6 + place] .. ' - ' .. details
  end
  reply[#reply + 1] = outcome
  reply[#reply + 1] = change_seq
  reply[#reply + 1] = created_at
end
reply[3] = text(seq)

local function write()
  for _, event in ipairs(opened) do
    redis.call('SADD', KEYS[#KEYS], event[4])
    redis.call('HSET', event[1], 'capacity', event[2], 'available', event[2], 'waiting', '0',
      'next_turn', '1', 'name', event[3], 'created_at', now, 'updated_at', now)
    redis.call('HSET', meta_key, 'newest_event', text(newest))
  end
  remember(calls_key, caller, number, now, reply)
end

if #changes > 0 then
  append(outbox_key, now, changes, seq, awaited)
  return complete(meta_key, seq, write) or reply
end
write()
return reply
