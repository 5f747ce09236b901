-- uses: base, life, each
-- Watch: somebody waits for the end of this task, which is then told to every daemon.
-- KEYS: the list of each entry. ARGV per entry: task id. Reply per entry: {0, state} · {1} no such task · {8, text}.
local function watch(list, id)
  local g = '{' .. list .. '}'
  if call('HEXISTS', g .. 't', id) == 0 then return {1} end
  local m = known(g, id) or {s = 'r'}
  if m.s ~= 'x' and m.s ~= 'e' and not m.w then
    may_grow()
    m.w = true
    -- Long enough for the one who waits to read how it ended.
    m.r = math.max(m.r or 0, FOR_WHO_WAITS)
    keep(g, id, m)
  end
  return {0, m.s}
end

return finish(reply_each(watch, 1))
