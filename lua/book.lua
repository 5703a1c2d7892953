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
--   `DAMAGED <why>` is an error reply: a write after the entry failed, and the partition is closed
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

local first = 7 + event_count
local events = read_events(4, 7, event_count)
read_users(events, first, 3)

local argv = ARGV
local reply, said, changes, made = { 'OK', EPOCH, '', now, '-' }, 5, {}, 0
for at = first, #argv, 3 do
  local event, user, keyed = events[tonumber(argv[at])], argv[at + 1], argv[at + 2]
  local outcome, change_seq, beside = 'NO_EVENT', '0', '0'
  if event.capacity and is_frozen(frozen, event) then
    outcome = 'FROZEN'
  elseif event.capacity then
    local state, known_seq, turn, tail = nil, '0', 0, ''
    if event.users[user] ~= false then
      state, known_seq, turn, tail = user_of(event, user)
    end
    local position = 0
    if state == 'waiting' then
      -- Who joined in this call is not in Redis's list yet; nobody leaves in a call that books.
      local ahead = turn - event.first_turn
      position = ahead >= 0 and event.waited + ahead + 1 or position_of(event, turn)
    end
    local done, done_seq = done_before(tail, keyed)
    if done == 'KEY_REUSED' then
      outcome = 'KEY_REUSED'
    elseif done then
      outcome, change_seq = 'REPLAYED', done_seq
      beside = then_and_now(done, state, known_seq, position)
    elseif state == 'booked' then
      outcome, change_seq = 'ALREADY_BOOKED', known_seq
    elseif state == 'waiting' then
      outcome, change_seq, beside = 'ALREADY_WAITING', known_seq, text(position)
    elseif seq - recorded >= unrecorded_max then
      outcome = 'RECORD_BEHIND'
    else
      seq = seq + 1
      change_seq = text(seq)
      local kind, details
      if event.available > 0 and event.waiting == 0 then
        outcome = 'BOOKED'
        event.available = event.available - 1
        tail, details = keep(tail, keyed, 'booked', change_seq)
        set_user(event, user, 'booked', change_seq, '0', tail)
        kind = 'booked'
      else
        outcome = 'WAITING'
        event.waiting = event.waiting + 1
        beside = text(event.waiting)
        local joined_turn = text(event.next_turn)
        tail, details = keep(tail, keyed, 'waiting', change_seq)
        set_user(event, user, 'waiting', change_seq, joined_turn, tail)
        event.joined = event.joined or {}
        event.joined[#event.joined + 1] = joined_turn .. ' ' .. user
        event.next_turn = event.next_turn + 1
        kind = 'waiting'
      end
      made = made + 1
      changes[made] = kind .. ' ' .. event.id .. ' ' .. user .. details
    end
  end
  reply[said + 1] = outcome
  reply[said + 2] = change_seq
  reply[said + 3] = beside
  said = said + 3
end
reply[3] = text(seq)

local function write()
  for _, event in ipairs(events) do
    write_event(event, now)
  end
  remember(calls_key, caller, number, now, reply)
end

if made > 0 then
  append(outbox_key, now, changes, seq, awaited)
  return complete(meta_key, seq, write) or reply
end
write()
return reply
