-- uses: base, life, finishing, heads, each
-- Delete: forget a task that is in a given state. A leased task cannot be deleted: its holder works on it.
-- KEYS: the list of each entry. ARGV per entry: task id, the letter of the state (r d x e).
-- Reply per entry: {0} · {1} it is not in that state any more · {8, text}.
local HEADS = 10

local function delete(list, id, state)
  local tag = '{' .. list .. '}'
  must_be_list(list)
  if state == 'x' or state == 'e' then
    if call('ZREM', tag .. state, id) == 0 and (state == 'x' or call('ZREM', tag .. 'f', id) == 0) then return {1} end
    forget(list, tag, id)
    return {0}
  end
  local task = known(tag, id)
  if state == 'd' then
    if call('ZREM', tag .. 'd', id) == 0 then return {1} end
  else
    if call('HEXISTS', tag .. 't', id) == 0 or (task and task.s ~= 'r') then return {1} end
    leave_tombstone(list, tag, task or {})
  end
  drop(list, tag, id, task)
  if state == 'r' then clear_head(list, tag, task and task.p or 0, HEADS) end
  return {0}
end

may_grow()
return finish(reply_each(delete, 2))
