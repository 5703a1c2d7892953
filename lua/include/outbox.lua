-- The outbox: one entry per call that changed something, one line and one seq per change.

-- Append an entry for the changes decided by this call. This is the first write of every script: its
-- id is explicit, and refused unless it is greater than the last, and then nothing was done.
-- `changes` holds lines of `kind event user details`, in order; the last one has the seq `last`.
-- `awaited` '1': somebody waits until this entry is on record, so that the writer does not linger.
local function append(outbox_key, now, changes, last, awaited)
  local first, lines = text(last - #changes + 1), table.concat(changes, '\n')
  if awaited == '1' then
    redis.call('XADD', outbox_key, EPOCH .. '-' .. text(last), 'v', '2', 'at', now, 'first',
      first, 'changes', lines, 'awaited', '1')
  else
    redis.call('XADD', outbox_key, EPOCH .. '-' .. text(last), 'v', '2', 'at', now, 'first',
      first, 'changes', lines)
  end
end

-- Make the writes that follow the entry, `seq` in meta the last of them: an entry above it is one
-- that a call did not finish. Lua has no rollback. If a write fails, the entry stands and Redis does
-- not hold what it says, so the partition is closed in this very step, before any other call sees
-- what is half done. Returns the error to reply with, nil when all is written.
local function complete(meta_key, seq, write)
  local done, failure = pcall(function()
    write()
    redis.call('HSET', meta_key, 'seq', text(seq))
  end)
  if done then
    return nil
  end
  local why = type(failure) == 'table' and failure.err or tostring(failure)
  redis.pcall('HSET', meta_key, 'open', '0', 'damaged', why)
  return redis.error_reply('DAMAGED ' .. why)
end
