#!lua flags=no-writes
-- Read events and users, in one step for everybody who asked at the same moment.
--
-- KEYS
--   1 {pNN}:meta    hash
--   then four for each event
--     {pNN}:event:<id>         hash
--     {pNN}:users:<id>         hash
--     {pNN}:waiting_list:<id>  list
--     {pNN}:gaps:<id>          zset
-- ARGV
--   1 event_count  integer, 0..256; 0 asks for nothing but whether this partition serves
--   then event_count event ids (text)
--   then for each item, at most 256
--     event        integer, 1..event_count, the place of the item's event among the ids
--     user         text without white space, or empty to read the event alone
-- RETURNS OK, epoch, seq, clock, -, then for each item eleven words: outcome, capacity,
--   available, waiting, created_at, updated_at (microseconds), name, state, seq, position, recorded
--   FOUND     state is booked, waiting, cancelled or left_waiting_list, or empty when the user never
--             asked for this event or the event was read alone; position is 0 unless waiting;
--             recorded is 1 when the state's seq is at or below the watermark, else 0; and 0 for a
--             frozen event, of which changes below the watermark may be dead letters
--   NO_EVENT  the rest is empty
-- ERRORS UNINIT FENCED, each with epoch, seq, clock, reason
-- @include fence
-- @include events

local meta_key = KEYS[1]
local event_count = tonumber(ARGV[1])

local now = clock()
local refusal, seq, recorded, frozen = fence(meta_key, now)
if refusal then
  return refusal
end

local first = 2 + event_count
local events = read_events(2, 2, event_count)
read_users(events, first, 2)

local argv, reply, said = ARGV, { 'OK', EPOCH, text(seq), now, '-' }, 5
for at = first, #argv, 2 do
  local event, user = events[tonumber(argv[at])], argv[at + 1]
  for i = said + 1, said + 11 do
    reply[i] = ''
  end
  if not event.capacity then
    reply[said + 1] = 'NO_EVENT'
  else
    event.shown = event.shown
      or redis.call('HMGET', event.event_key, 'created_at', 'updated_at', 'name')
    reply[said + 1] = 'FOUND'
    reply[said + 2] = text(event.capacity)
    reply[said + 3] = text(event.available)
    reply[said + 4] = text(event.waiting)
    reply[said + 5] = event.shown[1]
    reply[said + 6] = event.shown[2]
    reply[said + 7] = event.shown[3]
    reply[said + 10] = '0'
    reply[said + 11] = '0'
    local state, known_seq, turn
    if user ~= '' then
      state, known_seq, turn = user_of(event, user)
    end
    if state then
      reply[said + 8] = state
      reply[said + 9] = known_seq
      if state == 'waiting' then
        reply[said + 10] = text(position_of(event, turn))
      end
      if tonumber(known_seq) <= recorded and not is_frozen(frozen, event) then
        reply[said + 11] = '1'
      end
    end
  end
  said = said + 11
end
return reply
