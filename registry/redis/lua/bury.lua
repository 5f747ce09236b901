-- uses: base, life, history, each
-- Bury: make a leased task dead at once, even if it has attempts left.
-- KEYS: the list of each entry. ARGV per entry: lease id, reason. Reply per entry: {0} · {1} the lease was gone.
local function bury_leased(list, lease, reason)
  local tag = '{' .. list .. '}'
  if call('ZREM', tag .. 'l', lease) == 0 then return {1} end
  local id = string.match(lease, '^[^-]*')
  local task = load_task(tag, id) or {a = 1}
  remember(task, reason)
  bury(list, tag, id, task, reason)
  return {0}
end

return finish(reply_each(bury_leased, 2))
