#!lua
-- Bring one event from the record into Redis, in several calls: begin, chunk ..., finish.
-- It creates what is absent, in this epoch, and nothing else. Until its finish the event has no
-- capacity, and so is absent for every other script; each loader has a token, and one that went
-- silent for two seconds is started over from empty keys.
--
-- KEYS
--   1 {pNN}:meta             hash
--   2 {pNN}:event:<id>         hash
--   3 {pNN}:users:<id>         hash
--   4 {pNN}:waiting_list:<id>  list
--   5 {pNN}:gaps:<id>          zset
--   6 {pNN}:events             set
-- ARGV
--   1 step   text, begin, chunk or finish
--   2 token  text, random, of this loader
--   begin
--     3 recorded  integer, the seq that the record had when the event was read from it
--   chunk, for each user, at most 1,000; none only says that the loader is still at work
--     user     text without white space
--     state    text, `<state> <seq> <quantity> <turn>[ <keyed> ...]` as in {pNN}:users:<id>
--     turn     integer, or empty unless the user waits; consecutive from 1 over all chunks
--   finish
--     3 capacity, 4 available, 5 waiting, 6 next_turn  integers
--     7 name  text
--     8 created_at, 9 updated_at  integers, microseconds
-- RETURNS OK, epoch, seq, clock, -, outcome
--   BEGUN    the keys are empty and this token's
--   ADDED    the chunk is in
--   LOADED   the event can be booked
--   PRESENT  Redis knows the event already
--   BUSY     another loader is at work
--   STALE    the event was archived after it was read from the record
--   TAKEN    the load was started over by another loader
-- ERRORS UNINIT FENCED, each with epoch, seq, clock, reason
-- @include fence

local meta_key, event_key, users_key, waiting_list_key, gaps_key, events_key =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local step, token = ARGV[1], ARGV[2]
local abandoned_after_us = 2000000

local now = clock()
local refusal, seq = fence(meta_key, now)
if refusal then
  return refusal
end

local function begin(recorded)
  local held = redis.call('HMGET', event_key, 'capacity', 'loader', 'loading_at')
  if held[1] then
    return 'PRESENT'
  end
  local archived = redis.call('HGET', meta_key, 'archived')
  if archived and tonumber(archived) > tonumber(recorded) then
    return 'STALE'
  end
  -- Less than no time: the clock was set back since, by nobody knows how much.
  local silent_us = tonumber(now) - tonumber(held[3] or now)
  if held[2] and held[2] ~= token and silent_us >= 0 and silent_us < abandoned_after_us then
    return 'BUSY'
  end
  redis.call('SADD', events_key, string.match(event_key, '%d+$'))
  redis.call('UNLINK', event_key, users_key, waiting_list_key, gaps_key)
  redis.call('HSET', event_key, 'loader', token, 'loading_at', now)
  return 'BEGUN'
end

local function chunk()
  local states, turns = {}, {}
  for at = 3, #ARGV, 3 do
    local user, state, turn = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    states[#states + 1] = user
    states[#states + 1] = state
    if turn ~= '' then
      turns[#turns + 1] = turn .. ' ' .. user
    end
  end
  redis.call('HSET', event_key, 'loading_at', now)
  if #states > 0 then
    redis.call('HSET', users_key, unpack(states))
  end
  if #turns > 0 then
    redis.call('RPUSH', waiting_list_key, unpack(turns))
  end
  return 'ADDED'
end

local function finish(capacity, available, waiting, next_turn, name, created_at, updated_at)
  redis.call('HSET', event_key, 'capacity', capacity, 'available', available, 'waiting', waiting,
    'next_turn', next_turn, 'name', name, 'created_at', created_at, 'updated_at', updated_at)
  redis.call('HDEL', event_key, 'loader', 'loading_at')
  return 'LOADED'
end

local outcome = 'TAKEN'
if step == 'begin' then
  outcome = begin(ARGV[3])
elseif redis.call('HGET', event_key, 'loader') == token then
  if step == 'chunk' then
    outcome = chunk()
  else
    outcome = finish(ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9])
  end
end
return { 'OK', EPOCH, text(seq), now, '-', outcome }
