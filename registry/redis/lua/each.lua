-- uses: base
-- Verbs whose entries are carried out one after the other.

-- The replies to all entries, in order: `act(list, argument, …)`, with so many arguments each. Where `backwards` the
-- last entry is the first to be carried out; once `enough()` says so the rest of them get no reply.
local function reply_each(act, stride, backwards, enough)
  local replies, first, last, step = {}, 1, #KEYS, 1
  if backwards then first, last, step = last, first, -1 end
  for i = first, last, step do
    if enough and enough() then break end
    replies[i] = reply_of(act, KEYS[i], unpack(ARGV, 4 + (i - 1) * stride, 3 + i * stride))
  end
  return replies
end
