-- uses: base, life, finishing, each
-- Cancel: what waits is dead, what is leased is marked, what has ended is removed.
-- KEYS: the list of each entry. ARGV per entry: task id. Reply per entry: {0, 'cancelled' | 'marked' | 'removed'} · {1}
--   no such task · {8, text}.
local function cancel(list, id)
  local g = '{' .. list .. '}'
  if call('HEXISTS', g .. 't', id) == 0 then return {1} end
  local m = known(g, id) or {s = 'r'}
  if m.s == 'x' or m.s == 'e' then
    if call('ZREM', g .. m.s, id) == 0 then call('ZREM', g .. 'f', id) end
    forget(list, g, id)
    return {0, 'removed'}
  end
  if m.s == 'l' then
    m.c = true
    keep(g, id, m)
    return {0, 'marked'}
  end
  if m.s == 'd' then call('ZREM', g .. 'd', id) else leave_tombstone(list, g, m) end
  call('ZREM', g .. 'o', id)
  bury(list, g, id, m, 'cancelled')
  return {0, 'cancelled'}
end

may_grow()
return finish(reply_each(cancel, 1))
