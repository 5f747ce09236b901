-- uses: base, life, each
-- Run: a delayed task is ready now.
-- KEYS: the list of each entry. ARGV per entry: task id. Reply per entry: {0} · {1} no such task · {2, state} not
--   delayed · {8, text}.
local function run(list, id)
  local g = '{' .. list .. '}'
  must_be_list(list)
  if call('HEXISTS', g .. 't', id) == 0 then return {1} end
  local m = known(g, id) or {s = 'r'}
  if call('ZREM', g .. 'd', id) == 0 then return {2, m.s} end
  make_ready(list, g, id, m, false)
  return {0}
end

return finish(reply_each(run, 1))
