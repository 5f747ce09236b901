-- uses: base, life, finishing, each
-- Cancel: a waiting task becomes dead, a leased one is marked, one that has ended is removed.
-- KEYS: the list of each entry. ARGV per entry: task id. Reply per entry: {0, 'cancelled' | 'marked' | 'removed'} · {1}
--   no such task · {8, text}.
local function cancel(list, id)
  local tag = '{' .. list .. '}'
  if call('HEXISTS', tag .. 't', id) == 0 then return {1} end
  local task = known(tag, id) or {s = 'r'}
  if task.s == 'x' or task.s == 'e' then
    if call('ZREM', tag .. task.s, id) == 0 then call('ZREM', tag .. 'f', id) end
    forget(list, tag, id)
    return {0, 'removed'}
  end
  if task.s == 'l' then
    task.c = true
    keep(tag, id, task)
    return {0, 'marked'}
  end
  if task.s == 'd' then call('ZREM', tag .. 'd', id) else leave_tombstone(list, tag, task) end
  call('ZREM', tag .. 'o', id)
  bury(list, tag, id, task, 'cancelled')
  return {0, 'cancelled'}
end

may_grow()
return finish(reply_each(cancel, 1))
