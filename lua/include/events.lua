-- The events of a call, as the script sees them while it decides: what Redis holds, overlaid with
-- what this call has decided so far. Nothing is written before `write_event`.
--
-- A user is the text that Redis holds, or will hold, and is taken apart only where there is one:
-- most who book are strangers, and a table for each of them would cost more than their booking.

-- Returns one table per event; `joined` and `left` come with the first who does. `capacity` is nil where Redis does not know the event (an event that
-- is being loaded has no capacity yet, and so counts as absent).
local function read_events(first_key, first_id, event_count)
  local events = {}
  for i = 1, event_count do
    local key = first_key + 4 * (i - 1)
    local held = redis.call('HMGET', KEYS[key], 'capacity', 'available', 'waiting', 'next_turn')
    local next_turn = tonumber(held[4])
    events[i] = {
      id = ARGV[first_id + i - 1],
      event_key = KEYS[key],
      users_key = KEYS[key + 1],
      waiting_list_key = KEYS[key + 2],
      gaps_key = KEYS[key + 3],
      capacity = tonumber(held[1]),
      available = tonumber(held[2]),
      waiting = tonumber(held[3]),
      waited = tonumber(held[3]),
      next_turn = next_turn,
      first_turn = next_turn,
      users = {},
      changed = {},
      popped = 0,
    }
  end
  return events
end

-- Read what Redis holds of everybody whom the items name: one look per event. An item is `stride`
-- words of ARGV, the event's place and the user first; a user may be empty.
local function read_users(events, first_item, stride)
  local argv = ARGV
  if #events * stride > #argv - first_item then
    return -- each item has an event of its own: `user_of` looks when it comes to it
  end
  local asked = {}
  for i = 1, #events do
    asked[i] = {}
  end
  for at = first_item, #argv, stride do
    local place, user = tonumber(argv[at]), argv[at + 1]
    if user ~= '' and events[place].capacity then
      asked[place][#asked[place] + 1] = user
    end
  end
  for i, event in ipairs(events) do
    local users, named = event.users, asked[i]
    if #named > 0 then
      local held = redis.call('HMGET', event.users_key, unpack(named))
      for k = 1, #named do
        users[named[k]] = held[k]
      end
    end
  end
end

-- Returns what is known of a user: state (nil for a stranger), seq (text), turn (number), and what
-- stands behind these, which `keyed` reads.
local function user_of(event, user)
  local held = event.users[user]
  if held == nil then
    held = redis.call('HGET', event.users_key, user)
    event.users[user] = held
  end
  if not held then
    return nil, '0', 0, ''
  end
  local state, seq, turn, tail = string.match(held, '^(%S+) (%d+) %d+ (%d+)(.*)$')
  return state, seq, tonumber(turn), tail
end

-- Decide a user's new state. Turn is text, 0 for those who do not wait; quantity is 1 for now. Who
-- is decided twice is written twice, in order, by the same command.
local function set_user(event, user, state, seq, turn, tail)
  local held = state .. ' ' .. seq .. ' 1 ' .. turn .. tail
  local changed = event.changed
  local last = #changed
  event.users[user] = held
  changed[last + 1] = user
  changed[last + 2] = held
end

-- Whether an operator has frozen an event: a change of it could not go on record. `frozen` is what
-- the fence returned; only a handshake changes it.
local function is_frozen(frozen, event)
  return frozen and string.find(' ' .. frozen .. ' ', ' ' .. event.id .. ' ', 1, true)
end

-- The turn at the head of the list as Redis holds it; the head may have left, and then counts as a gap.
local function head_turn(event)
  if event.head == nil then
    local head = redis.call('LINDEX', event.waiting_list_key, 0)
    event.head = head and tonumber(string.match(head, '^%d+')) or event.next_turn
  end
  return event.head
end

-- How many live waiters stand at or before a turn that Redis holds: turns are consecutive, so it is
-- the distance to the head less the gaps between.
local function position_of(event, turn)
  local head = head_turn(event)
  event.gaps = event.gaps or redis.call('ZCARD', event.gaps_key)
  local gone = 0
  if event.gaps > 0 then
    gone = redis.call('ZCOUNT', event.gaps_key, head, '(' .. text(turn))
  end
  return turn - head + 1 - gone
end

-- Write what was decided about one event, once per key.
local function write_event(event, now)
  if #event.changed == 0 then
    return
  end
  if event.waiting == event.waited and event.next_turn == event.first_turn then
    redis.call('HSET', event.event_key, 'available', text(event.available), 'updated_at', now)
  else
    redis.call('HSET', event.event_key, 'available', text(event.available), 'waiting',
      text(event.waiting), 'next_turn', text(event.next_turn), 'updated_at', now)
  end
  redis.call('HSET', event.users_key, unpack(event.changed))
  if event.waiting == 0 and (event.popped > 0 or event.left) then
    -- Nobody waits any more, so every element left in the list is one of somebody who has gone.
    redis.call('UNLINK', event.waiting_list_key, event.gaps_key)
    return
  end
  if event.joined then
    redis.call('RPUSH', event.waiting_list_key, unpack(event.joined))
  end
  if event.left then
    redis.call('ZADD', event.gaps_key, unpack(event.left))
  end
  if event.popped > 0 then
    redis.call('LTRIM', event.waiting_list_key, event.popped, -1)
  end
end
