-- Keyed changes: what a user changed under an Idempotency-Key, the last eight, behind the state.
-- An item brings `<key>/<digest>` (the digest is of operation and payload), nothing without a key;
-- kept is ` <key>/<digest>/<outcome>/<seq>` of each, oldest first. Without a key none of it is read.

-- Returns what a key has done for this user: outcome and seq, KEY_REUSED for another payload, or nil.
local function done_before(tail, keyed)
  if keyed == '' or tail == '' then
    return nil
  end
  local key = string.match(keyed, '^[^/]+/')
  local at = string.find(tail, ' ' .. key, 1, true)
  if not at then
    return nil
  end
  local digest, outcome, seq = string.match(tail, '^([^/]+)/([^/]+)/(%d+)', at + 1 + #key)
  if key .. digest ~= keyed then
    return 'KEY_REUSED'
  end
  return outcome, seq
end

-- Returns what a replay says beside the first seq: outcome then, and state, seq and position now.
local function then_and_now(outcome, state, seq, position)
  return outcome .. '/' .. state .. '/' .. seq .. '/' .. text(position)
end

-- Keep a change under its key: returns the tail with it, and the details that its line ends with;
-- without a key the tail as it is, and nothing.
local function keep(tail, keyed, outcome, seq)
  if keyed == '' then
    return tail, ''
  end
  tail = tail .. ' ' .. keyed .. '/' .. outcome .. '/' .. seq
  local _, kept = string.gsub(tail, ' ', ' ')
  if kept > 8 then
    tail = string.match(tail, '^ %S+(.*)$')
  end
  local key, digest = string.match(keyed, '^(.+)/(.+)$')
  local reassigned = outcome == 'reassigned' and ',"reassigned":true' or ''
  return tail, ' {"key":"' .. key .. '","digest":"' .. digest .. '"' .. reassigned .. '}'
end
