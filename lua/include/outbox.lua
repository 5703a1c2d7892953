-- The outbox: one entry per call that changed something, one line and one seq per change.

-- Append an entry for the changes decided by this call. This is the first write of every script and
-- the only one that can fail: its id is explicit, and refused unless it is greater than the last.
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
