-- uses: base, life, finishing, aside, each
-- Cancel: a waiting task becomes dead, a leased one is marked, one that has ended is removed.
-- KEYS: the list of each entry. ARGV per entry: task id; after a space, where its state before is set aside.
-- Reply per entry: {0, 'cancelled' | 'marked' | 'removed'[, bytes set aside]} · {1} no such task · {6|7|8, text}.
local function remove(list, tag, id, task, place)
  local kind, at = task.s, call('ZSCORE', tag .. task.s, id)
  if not at then
    kind = 'f'
    at = call('ZSCORE', tag .. kind, id)
  end
  if place == '' then may_grow() else must_have_room() end
  if at then set_task_aside(tag, place, kind, id, call('HGET', tag .. 'm', id), at) end
  call('ZREM', tag .. kind, id)
  forget(list, tag, id)
end

local function cancel(list, id_and_place)
  local id, place = string.match(id_and_place, '^(%S*) ?(.*)$')
  local tag = '{' .. list .. '}'
  if call('HEXISTS', tag .. 't', id) == 0 then return {1} end
  local before, task = aside_bytes, load_task(tag, id) or {s = 'r'}
  if task.s == 'x' or task.s == 'e' then
    remove(list, tag, id, task, place)
    return {0, 'removed', place ~= '' and aside_bytes - before or nil}
  end
  may_grow()
  if task.s == 'l' then
    -- A task that was marked before stays marked if this operation is undone.
    if not task.c then set_aside(tag, place, 'm', id, task.o and task.o.i or '') end
    task.c = true
    save_task(tag, id, task)
    return {0, 'marked', place ~= '' and aside_bytes - before or nil}
  end
  set_aside(tag, place, 'c', id, {s = task.s, du = task.du, z = now})
  if task.s == 'd' then call('ZREM', tag .. 'd', id) else leave_tombstone(list, tag, task) end
  call('ZREM', tag .. 'o', id)
  bury(list, tag, id, task, 'cancelled')
  return {0, 'cancelled', place ~= '' and aside_bytes - before or nil}
end

return finish(reply_each(cancel, 1))
