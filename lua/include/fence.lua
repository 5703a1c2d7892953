-- The fence: nothing runs unless this partition is open in the epoch that the script was loaded for.
-- Partition and epoch stand in the text, so that the scripts of each have digests of their own: a
-- node that still caches older ones cannot be taken for this epoch's, and one partition's handshake
-- loads nothing that another's calls would find.
local EPOCH = '@EPOCH@' -- of partition @PARTITION@

-- Redis's own clock in microseconds since 1970, as text: a number of sixteen digits survives in
-- Lua, but `..` would print it as 1.7e+15.
local function clock()
  local time = redis.call('TIME')
  return time[1] .. string.format('%06d', time[2])
end

-- seq as text: whole digits whatever its size.
local function text(number)
  return string.format('%.0f', number)
end

-- Returns the refusal to reply with; or nil, the seq of the last change, that of the watermark, and the
-- ids of the frozen events as text (false when none is). While a partition is open its watermark is on
-- the lineage, so that the difference of the two seqs counts the changes which Redis does not know to
-- be on record.
local function fence(meta_key, now)
  local meta = redis.call('HMGET', meta_key, 'epoch', 'seq', 'open', 'reason', 'recorded', 'frozen')
  if not meta[1] and not meta[3] then
    return { 'UNINIT', '', '', now, '' }
  end
  if meta[1] ~= EPOCH or meta[3] ~= '1' then
    return { 'FENCED', meta[1] or '', meta[2] or '', now, meta[4] or '' }
  end
  return nil, tonumber(meta[2]), tonumber(meta[5]), meta[6]
end
