-- uses: base
-- For verbs that handle their entries one after the other.

-- The replies to all entries, in order: each is the result of `act(list, argument, …)`, with `stride` arguments.
-- `backwards`: begin with the last entry. Once `enough()` returns true, the remaining entries get no reply.
local function reply_each(act, stride, backwards, enough)
  local replies, first, last, step = {}, 1, #KEYS, 1
  if backwards then first, last, step = last, first, -1 end
  for i = first, last, step do
    if enough and enough() then break end
    replies[i] = reply_of(act, KEYS[i], unpack(ARGV, 4 + (i - 1) * stride, 3 + i * stride))
  end
  return replies
end
