-- uses: base, life, enter, each
-- Unstage: forget parts of a batch that will not be pushed.
-- KEYS: the list of each entry. ARGV per entry: the head of the ids, msgpack {tails}. Reply per entry: {0} · {8, text}.
local function forget_part(list, head, encoded)
  unstage(list, '{' .. list .. '}', with_head(head, cmsgpack.unpack(encoded)))
  return {0}
end

return finish(reply_each(forget_part, 2))
