-- The outbox: one entry per call that changed something, one line and one seq per change.

-- Append an entry for the changes decided by this call. This is the first write of every script and
-- the only one that can fail: its id is explicit, and refused unless it is greater than the last.
-- `changes` holds lines of `kind event user details`, in order; the last one has the seq `last`.
local function append(outbox_key, now, changes, last)
  redis.call('XADD', outbox_key, EPOCH .. '-' .. text(last), 'v', '1', 'at', now, 'first',
    text(last - #changes + 1), 'changes', table.concat(changes, '\n'))
end
