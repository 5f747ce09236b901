-- uses: base, life, finishing, heads, each
-- Delete: a task of a state is forgotten. What is leased is not: its holder works on it.
-- KEYS: the list of each entry. ARGV per entry: task id, the letter of the state (r d x e).
-- Reply per entry: {0} · {1} it is not in that state any more · {8, text}.
local HEADS = 10

local function delete(list, id, state)
  local g = '{' .. list .. '}'
  must_be_list(list)
  if state == 'x' or state == 'e' then
    if call('ZREM', g .. state, id) == 0 and (state == 'x' or call('ZREM', g .. 'f', id) == 0) then return {1} end
    forget(list, g, id)
    return {0}
  end
  local m = known(g, id)
  if state == 'd' then
    if call('ZREM', g .. 'd', id) == 0 then return {1} end
  else
    if call('HEXISTS', g .. 't', id) == 0 or (m and m.s ~= 'r') then return {1} end
    leave_tombstone(list, g, m or {})
  end
  if m then
    free_key(g, id, m)
    tell_ended(list, id, m)
    call('ZREM', g .. 'o', id)
  end
  forget(list, g, id)
  if state == 'r' then clear_head(list, g, m and m.p or 0, HEADS) end
  return {0}
end

may_grow()
return finish(reply_each(delete, 2))
