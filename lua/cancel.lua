#!lua
-- Cancel for each user, in order: give a ticket back and, in the same step, to the first who waits;
-- or leave the waiting list.
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
--   CANCELLED      seq of the cancellation, 1 when a waiter got the ticket, else 0
--   LEFT           seq of leaving the waiting list, 0
--   REPLAYED       seq of the change that this key made, `<outcome then>/<state now>/<seq now>/<position
--                  now>`; outcome cancelled, reassigned (and a waiter got the ticket) or left
--   KEY_REUSED     0, 0; this key made another change
--   RECORD_BEHIND  0, 0; too many changes are not on record. One that is let through promotes as
--                  ever, so the last may go one change beyond
--   NOT_BOOKED     0, 0
--   NO_EVENT       0, 0
--   FROZEN         0, 0; nobody books or cancels at this event until it is repaired
-- ERRORS UNINIT FENCED STALE_CALL LATE, each with epoch, seq, clock, reason
--   `DAMAGED <why>` is an error reply: a write after the entry failed, and the partition is closed
-- @include fence
-- @include numbered
-- @include outbox
-- @include events
-- @include keyed
-- @include waiters

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
local changes = {}

local function change(kind, event, user, state, tail)
  seq = seq + 1
  local change_seq = text(seq)
  set_user(event, user, state, change_seq, '0', tail)
  changes[#changes + 1] = kind .. ' ' .. event.id .. ' ' .. user
  return change_seq
end

-- Keep the change that was made last of this user under its key, if it has one.
local function keep_change(line, event, user, state, change_seq, tail, keyed, outcome)
  if keyed ~= '' then
    local kept, details = keep(tail, keyed, outcome, change_seq)
    set_user(event, user, state, change_seq, '0', kept)
    changes[line] = changes[line] .. details
  end
end

-- Returns true when a waiter got the ticket that has come free.
local function promote(event)
  local user, tail = nil, nil
  if event.waiting > 0 then
    user, tail = next_waiter(event)
  end
  if not user then
    return false
  end
  event.available = event.available - 1
  event.waiting = event.waiting - 1
  event.promoted = (event.promoted or 0) + 1
  change('promoted', event, user, 'booked', tail)
  return true
end

-- A waiter's position after what this call has decided so far, 0 for everybody else.
local function position_now(event, state, turn)
  if state ~= 'waiting' then
    return 0
  end
  local position = position_of(event, turn) - (event.promoted or 0)
  local left = event.left or {}
  for at = 1, #left, 2 do
    if tonumber(left[at]) < turn then
      position = position - 1
    end
  end
  return position
end

local argv, reply, said = ARGV, { 'OK', EPOCH, '', now, '-' }, 5
for at = first, #argv, 3 do
  local event, user, keyed = events[tonumber(argv[at])], argv[at + 1], argv[at + 2]
  local outcome, change_seq, beside = 'NO_EVENT', '0', '0'
  if event.capacity and is_frozen(frozen, event) then
    outcome = 'FROZEN'
  elseif event.capacity then
    local state, known_seq, turn, tail = user_of(event, user)
    local done, done_seq = done_before(tail, keyed)
    if done == 'KEY_REUSED' then
      outcome = 'KEY_REUSED'
    elseif done then
      outcome, change_seq = 'REPLAYED', done_seq
      beside = then_and_now(done, state, known_seq, position_now(event, state, turn))
    elseif state ~= 'booked' and state ~= 'waiting' then
      outcome = 'NOT_BOOKED'
    elseif seq - recorded >= unrecorded_max then
      outcome = 'RECORD_BEHIND'
    elseif state == 'booked' then
      outcome = 'CANCELLED'
      local line = #changes + 1
      change_seq = change('cancelled', event, user, 'cancelled', tail)
      event.available = event.available + 1
      local reassigned = promote(event)
      beside = reassigned and '1' or '0'
      keep_change(line, event, user, 'cancelled', change_seq, tail, keyed,
        reassigned and 'reassigned' or 'cancelled')
    else
      outcome = 'LEFT'
      local gap = text(turn)
      event.left = event.left or {}
      event.left[#event.left + 1] = gap
      event.left[#event.left + 1] = gap
      change_seq = change('left', event, user, 'left_waiting_list', tail)
      event.waiting = event.waiting - 1
      keep_change(#changes, event, user, 'left_waiting_list', change_seq, tail, keyed, 'left')
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
    forget_gaps(event)
  end
  remember(calls_key, caller, number, now, reply)
end

if #changes > 0 then
  append(outbox_key, now, changes, seq, awaited)
  return complete(meta_key, seq, write) or reply
end
write()
return reply
