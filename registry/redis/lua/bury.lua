-- uses: base, life, history, each
-- Bury: a leased task is dead at once, whatever attempts it had left.
-- KEYS: the list of each entry. ARGV per entry: lease id, reason. Reply per entry: {0} · {1} the lease was gone.
local function bury_leased(list, lease, reason)
  local g = '{' .. list .. '}'
  if call('ZREM', g .. 'l', lease) == 0 then return {1} end
  local id = string.match(lease, '^[^-]*')
  local m = known(g, id) or {a = 1}
  remember(m, reason)
  bury(list, g, id, m, reason)
  return {0}
end

return finish(reply_each(bury_leased, 2))
