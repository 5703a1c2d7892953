-- Numbered calls: the same call twice has one effect and one reply, a call from the past none.
-- `calls` keeps, per caller (worker and script), the last number, when it ran, and its reply.

-- Returns the reply to send back, or nil when the call is new and may still run.
local function repeated(calls_key, caller, number, latest, now, seq)
  local last = redis.call('HGET', calls_key, caller)
  if last then
    local last_number = string.match(last, '^%d+')
    if last_number == number then
      local replayed = {}
      for word in string.gmatch(string.match(last, '^%d+ %d+ (.*)$'), '%S+') do
        replayed[#replayed + 1] = word
      end
      -- The seq and the clock of a reply are those of the moment at which it is sent.
      replayed[3], replayed[4] = text(seq), now
      return replayed
    end
    if tonumber(number) < tonumber(last_number) then
      return { 'STALE_CALL', EPOCH, text(seq), now, '' }
    end
  end
  if tonumber(now) > tonumber(latest) then
    return { 'LATE', EPOCH, text(seq), now, '' }
  end
  return nil
end

-- Remember the reply of a call, also of one that changed nothing. Words hold no white space.
local function remember(calls_key, caller, number, now, reply)
  redis.call('HSET', calls_key, caller, number .. ' ' .. now .. ' ' .. table.concat(reply, ' '))
end
