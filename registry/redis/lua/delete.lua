-- uses: base, life, finishing, heads, aside, each
-- Delete: forget tasks that are in a given state. A leased task cannot be deleted: its holder works on it.
-- KEYS: the list of each entry. ARGV per entry: task ids, separated by spaces; the letter of the state (r d x e);
--   after a space, where they are set aside.
-- Reply per entry: {0, how many were deleted, how many ids were looked at, bytes set aside} the others were in
--   another state · {2} its undo has begun · {6|7|8, text}.
local HEADS = 10

local function delete_one(list, tag, id, state, place)
  local waits = state == 'r' or state == 'd'
  local encoded, kind, at = nil, state, nil
  if state == 'r' then
    if call('HEXISTS', tag .. 't', id) == 0 then return false end
  else
    at = call('ZSCORE', tag .. kind, id)
    if not at and state == 'e' then
      kind = 'f'
      at = call('ZSCORE', tag .. kind, id)
    end
    if not at then return false end
  end
  if waits or place ~= '' then encoded = call('HGET', tag .. 'm', id) end
  local task = waits and unpack_task(encoded) or nil
  if state == 'r' and task and task.s ~= 'r' then return false end
  set_task_aside(tag, place, state == 'r' and 't' or kind, id, encoded, at)
  if state == 'r' then
    leave_tombstone(list, tag, task or {})
  else
    call('ZREM', tag .. kind, id)
  end
  drop(list, tag, id, task)
  if state == 'r' then clear_head(list, tag, task and task.p or 0, HEADS) end
  return true
end

local function delete(list, ids, selector)
  local tag = '{' .. list .. '}'
  local state, place = string.match(selector, '^(%a) ?(.*)$')
  check_is_list(list)
  if place == '' then
    may_grow()
  elseif is_undone(tag, place) then
    return {2}
  else
    must_have_room()
  end
  local count, looked, before = 0, 0, aside_bytes
  for id in string.gmatch(ids, '%S+') do
    if looked > 0 and is_enough() then break end
    looked = looked + 1
    if delete_one(list, tag, id, state, place) then count = count + 1 end
  end
  return {0, count, looked, aside_bytes - before}
end

return finish(reply_each(delete, 2))
