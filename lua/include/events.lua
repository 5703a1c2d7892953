-- The events of a call, as the script sees them while it decides: what Redis holds, overlaid with
-- what this call has decided so far. Nothing is written before `write_event`.

-- Returns one table per event. `capacity` is nil where Redis does not know the event (an event that
-- is being loaded has no capacity yet, and so counts as absent).
local function read_events(first_key, ids)
  local events = {}
  for i, id in ipairs(ids) do
    local key = first_key + 4 * (i - 1)
    local held = redis.call('HMGET', KEYS[key], 'capacity', 'available', 'waiting', 'next_turn')
    events[i] = {
      id = id,
      event_key = KEYS[key],
      users_key = KEYS[key + 1],
      waiting_list_key = KEYS[key + 2],
      gaps_key = KEYS[key + 3],
      capacity = tonumber(held[1]),
      available = tonumber(held[2]),
      waiting = tonumber(held[3]),
      next_turn = tonumber(held[4]),
      users = {},
      changed = {},
      joined = {},
      left = {},
      popped = 0,
    }
  end
  return events
end

-- Whether an operator has frozen an event: a change of it could not go on record. `frozen` is what
-- the fence returned; only a handshake changes it.
local function is_frozen(frozen, event)
  return frozen and string.find(' ' .. frozen .. ' ', ' ' .. event.id .. ' ', 1, true)
end

-- Returns what is known of a user: state (nil for a stranger), seq (text), turn (number), and what
-- stands behind these, which `keyed` reads.
local function user_of(event, user)
  local known = event.users[user]
  if not known then
    local held = redis.call('HGET', event.users_key, user)
    known = { tail = '' }
    if held then
      local state, seq, turn, tail = string.match(held, '^(%S+) (%d+) %d+ (%d+)(.*)$')
      known = { state = state, seq = seq, turn = tonumber(turn), tail = tail }
    end
    event.users[user] = known
  end
  return known
end

-- Decide a user's new state. Turn is 0 for those who do not wait; quantity is 1 for now.
local function set_user(event, user, state, seq, turn)
  local known = user_of(event, user)
  known.state, known.seq, known.turn = state, seq, turn
  if not known.changed then
    known.changed = true
    event.changed[#event.changed + 1] = user
  end
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
  local gone = redis.call('ZCOUNT', event.gaps_key, head, '(' .. text(turn))
  return turn - head + 1 - gone
end

-- Write what was decided about one event, once per key.
local function write_event(event, now)
  if #event.changed == 0 then
    return
  end
  redis.call('HSET', event.event_key, 'available', text(event.available), 'waiting',
    text(event.waiting), 'next_turn', text(event.next_turn), 'updated_at', now)
  local states = {}
  for _, user in ipairs(event.changed) do
    local known = event.users[user]
    states[#states + 1] = user
    states[#states + 1] = known.state .. ' ' .. known.seq .. ' 1 ' .. text(known.turn)
      .. known.tail
  end
  redis.call('HSET', event.users_key, unpack(states))
  if event.waiting == 0 and (event.popped > 0 or #event.left > 0) then
    -- Nobody waits any more, so every element left in the list is one of somebody who has gone.
    redis.call('UNLINK', event.waiting_list_key, event.gaps_key)
    return
  end
  if #event.joined > 0 then
    redis.call('RPUSH', event.waiting_list_key, unpack(event.joined))
  end
  if #event.left > 0 then
    redis.call('ZADD', event.gaps_key, unpack(event.left))
  end
  if event.popped > 0 then
    redis.call('LTRIM', event.waiting_list_key, event.popped, -1)
  end
end
