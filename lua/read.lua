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

local ids = {}
for i = 1, event_count do
  ids[i] = ARGV[1 + i]
end
local events = read_events(2, ids)

local reply = { 'OK', EPOCH, text(seq), now, '-' }
local function add(...)
  for i = 1, 11 do
    reply[#reply + 1] = select(i, ...) or ''
  end
end

for at = 2 + event_count, #ARGV, 2 do
  local event, user = events[tonumber(ARGV[at])], ARGV[at + 1]
  if not event.capacity then
    add('NO_EVENT')
  else
    event.shown = event.shown
      or redis.call('HMGET', event.event_key, 'created_at', 'updated_at', 'name')
    local known = user ~= '' and user_of(event, user) or {}
    local position = known.state == 'waiting' and position_of(event, known.turn) or 0
    local is_recorded = known.seq and tonumber(known.seq) <= recorded
      and not is_frozen(frozen, event)
    add('FOUND', text(event.capacity), text(event.available), text(event.waiting), event.shown[1],
      event.shown[2], event.shown[3], known.state, known.seq, text(position),
      is_recorded and '1' or '0')
  end
end
return reply
