#!lua
-- Book one ticket for each user, in order, or put the user on the waiting list.
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
--     user         text without white space
--     keyed        text, `<key>/<digest>` of the request, empty without an Idempotency-Key
-- RETURNS OK, epoch, seq, clock, -, then for each item three words: outcome, seq, beside
--   BOOKED           seq of the booking, 0
--   WAITING          seq of joining, position from 1
--   ALREADY_BOOKED   seq of the booking that stands, 0
--   ALREADY_WAITING  seq of joining, position from 1 as it is now
--   REPLAYED         seq of the change that this key made, `<outcome then>/<state now>/<seq
--                    now>/<position now>`; outcome booked or waiting
--   KEY_REUSED       0, 0; this key made another change
--   RECORD_BEHIND    0, 0; the booking would be one change too many that is not on record
--   NO_EVENT         0, 0
--   FROZEN           0, 0; nobody books or cancels at this event until it is repaired
-- ERRORS UNINIT FENCED STALE_CALL LATE, each with epoch, seq, clock, reason
-- @include fence
-- @include numbered
-- @include outbox
-- @include events
-- @include keyed

local meta_key, calls_key, outbox_key = KEYS[1], KEYS[2], KEYS[3]
local caller, number, latest, unrecorded_max, awaited, event_count =
  ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])

local now = clock()
local refusal, seq, recorded, frozen = fence(meta_key, now)
if refusal then
  return refusal
end
local again = repeated(calls_key, caller, number, latest, now, seq)
if again then
  return again
end

local ids = {}
for i = 1, event_count do
  ids[i] = ARGV[6 + i]
end
local events = read_events(4, ids)

local reply, changes = { 'OK', EPOCH, '', now, '-' }, {}
for at = 7 + event_count, #ARGV, 3 do
  local event, user, keyed = events[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2]
  local outcome, change_seq, position, beside = 'NO_EVENT', '0', 0, nil
  if event.capacity and is_frozen(frozen, event) then
    outcome = 'FROZEN'
  elseif event.capacity then
    local known = user_of(event, user)
    local done, done_seq = done_before(known, keyed)
    if done == 'KEY_REUSED' then
      outcome = 'KEY_REUSED'
    elseif done then
      outcome, change_seq = 'REPLAYED', done_seq
      if known.state == 'waiting' then
        position = known.position or position_of(event, known.turn)
      end
      beside = then_and_now(done, known, position)
    elseif known.state == 'booked' then
      outcome, change_seq = 'ALREADY_BOOKED', known.seq
    elseif known.state == 'waiting' then
      outcome, change_seq = 'ALREADY_WAITING', known.seq
      position = known.position or position_of(event, known.turn)
    elseif seq - recorded >= unrecorded_max then
      outcome = 'RECORD_BEHIND'
    else
      seq = seq + 1
      change_seq = text(seq)
      if event.available > 0 and event.waiting == 0 then
        outcome = 'BOOKED'
        event.available = event.available - 1
        set_user(event, user, 'booked', change_seq, 0)
        changes[#changes + 1] = 'booked ' .. event.id .. ' ' .. user
          .. keep(known, keyed, 'booked', change_seq)
      else
        outcome = 'WAITING'
        event.waiting = event.waiting + 1
        position = event.waiting
        set_user(event, user, 'waiting', change_seq, event.next_turn)
        -- Who joins in this call is not in Redis's list yet; nobody leaves in a call that books.
        known.position = position
        event.joined[#event.joined + 1] = text(event.next_turn) .. ' ' .. user
        event.next_turn = event.next_turn + 1
        changes[#changes + 1] = 'waiting ' .. event.id .. ' ' .. user
          .. keep(known, keyed, 'waiting', change_seq)
      end
    end
  end
  reply[#reply + 1] = outcome
  reply[#reply + 1] = change_seq
  reply[#reply + 1] = beside or text(position)
end
reply[3] = text(seq)

if #changes > 0 then
  append(outbox_key, now, changes, seq, awaited)
  redis.call('HSET', meta_key, 'seq', text(seq))
  for _, event in ipairs(events) do
    write_event(event, now)
  end
end
remember(calls_key, caller, number, now, reply)
return reply
