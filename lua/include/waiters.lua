-- Who is next: the head of the waiting list, past everybody who has left it.

-- How many turns from `turn` on are gaps without a break: doubling, then halving, over ZCOUNT, so
-- that a hundred thousand departures in a row cost a few dozen look-ups.
local function run_of_gaps(event, turn)
  local function all_gone(length)
    local last = text(turn + length - 1)
    return redis.call('ZCOUNT', event.gaps_key, text(turn), last) == length
  end
  local known, probe = 0, 1
  while all_gone(probe) do
    known, probe = probe, probe * 2
  end
  while probe - known > 1 do
    local middle = math.floor((known + probe) / 2)
    if all_gone(middle) then
      known = middle
    else
      probe = middle
    end
  end
  return known
end

-- Take the first live waiter off the list (on the overlay) and return the user and the user's keyed
-- changes, or nil. An element lives only if its user waits with this very turn.
local function next_waiter(event)
  while true do
    local element = redis.call('LINDEX', event.waiting_list_key, event.popped)
    if not element then
      return nil
    end
    local turn, user = string.match(element, '^(%d+) (%S+)$')
    turn = tonumber(turn)
    local state, _, waits_with, tail = user_of(event, user)
    if state == 'waiting' and waits_with == turn then
      event.popped = event.popped + 1
      return user, tail
    end
    -- Gone: together with everybody behind who went before this call, or alone, in this call.
    event.popped = event.popped + math.max(1, run_of_gaps(event, turn))
  end
end

-- Forget a few gaps that lie behind the head: they count for no position, they only take memory.
local function forget_gaps(event)
  if event.popped == 0 or event.waiting == 0 then
    return
  end
  local head = redis.call('LINDEX', event.waiting_list_key, 0)
  if not head then
    return
  end
  local behind = '(' .. string.match(head, '^%d+')
  local gaps = redis.call('ZRANGEBYSCORE', event.gaps_key, '-inf', behind, 'LIMIT', 0, 16)
  if #gaps > 0 then
    redis.call('ZREM', event.gaps_key, unpack(gaps))
  end
end
