-- uses: base, life, enter
-- Unstage: forget the parts of a batch that will not be pushed.
-- KEYS: the list of each entry. ARGV per entry: the head of the ids, msgpack {tails}. Reply per entry: {0} · {8, text}.
local replies = {}
for i = 1, #KEYS do
  local list = KEYS[i]
  local ok, e = pcall(unstage, list, '{' .. list .. '}', with_head(ARGV[2 + i * 2], cmsgpack.unpack(ARGV[3 + i * 2])))
  replies[i] = ok and {0} or refusal(e)
end
return finish(replies)
