-- uses: base, each
-- Died: how many dead tasks of each queue are deleted at a certain time or later; the queue keeps them for the same
--   length of time, so these are those that died after a certain time. Reads only.
-- KEYS: the list of each entry. ARGV per entry: the time, ms. Reply per entry: {0, how many} · {6|8, text}.
local function count(list, from)
  return {0, call('ZCOUNT', '{' .. list .. '}x', from, '+inf')}
end

return reply_each(count, 1)
