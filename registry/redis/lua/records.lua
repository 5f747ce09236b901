-- uses: base, members
-- Records: the members of one sorted set of several queues, a queue after the other, each with the record of its task.
-- Reads only, and no payloads.
-- KEYS: the lists. ARGV after the common three: the letter of the set, 1 for the highest score first, score and member
--   of the place in the first list ('' and '' for the front), members at most, bytes of records after which it stops.
-- Reply: {0, how many lists were read to their end, {place of the list in KEYS from 0 on, member, score, record or
--   false}, …} · {6|8, text}.
local function read(kind, down, score, member, limit, byte_limit)
  local reply, bytes = {0, 0}, 0
  for n, list in ipairs(KEYS) do
    local found = members(list, kind, down, n == 1 and score or '', n == 1 and member or '', limit)
    for i = 2, #found, 2 do
      -- A lease begins with the id of its task.
      local record = call('HGET', '{' .. list .. '}m', string.match(found[i], '^[^-]*'))
      reply[#reply + 1] = {n - 1, found[i], found[i + 1], record}
      bytes, limit = bytes + (record and #record or 0), limit - 1
      if bytes >= byte_limit then return reply end
    end
    if limit <= 0 then return reply end
    reply[2] = n
  end
  return reply
end

return reply_of(read, ARGV[4], ARGV[5] == '1', ARGV[6], ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9]))
