-- uses: base, life, each
-- Watch: a client waits for the end of this task, so its end will be published to every daemon.
-- KEYS: the list of each entry. ARGV per entry: task id. Reply per entry: {0, state} · {1} no such task · {8, text}.
local function watch(list, id)
  local tag = '{' .. list .. '}'
  if call('HEXISTS', tag .. 't', id) == 0 then return {1} end
  local task = load_task(tag, id) or {s = 'r'}
  if task.s ~= 'x' and task.s ~= 'e' and not task.w then
    may_grow()
    task.w = true
    -- Keep it long enough for the waiting client to read how it ended.
    task.r = math.max(task.r or 0, MIN_KEPT_FOR_WAITERS)
    save_task(tag, id, task)
  end
  return {0, task.s}
end

return finish(reply_each(watch, 1))
