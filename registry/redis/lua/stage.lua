-- uses: base, life, enter, each
-- Stage: store a part of a batch that is too large for one call. Its payloads are in no state yet: `pushmany` turns
-- all parts into tasks at once, and the sweeper forgets parts that were left behind.
-- KEYS: the list of each entry. ARGV per entry: the head of the ids ('' for the first part), msgpack {tails of ids,
--   payloads}.
-- Reply per entry: {0, the head of the ids} · {6|7|8, text}.
local STAGED_FOR = 60000

local function stage(list, head, encoded)
  local tag = '{' .. list .. '}'
  if not is_list(list) then return {6, 'WRONGTYPE'} end
  if head == '' then head = STAMP end
  local part = cmsgpack.unpack(encoded)
  local fields, scores, ends = {}, {}, now + STAGED_FOR
  for i, tail in ipairs(part[1]) do
    fields[2 * i - 1], fields[2 * i] = head .. tail, part[2][i]
    scores[2 * i - 1], scores[2 * i] = score(ends), head .. tail
  end
  call('HMSET', tag .. 't', unpack(fields))
  call('ZADD', tag .. 'b', unpack(scores))
  due(list, ends)
  return {0, head}
end

if too_late() then return {'LATE', now} end
return finish(reply_each(stage, 2))
