-- uses: base, life, attempts, each
-- Fail: the attempt failed; the task is tried again after the backoff or the given delay, or is dead.
-- KEYS: the list of each entry. ARGV per entry: lease id, FailOptions.
-- Reply per entry: {0, 'ready' | 'delayed' | 'dead'[, the name of its worker]} · {1} the lease is lost · {8, text}; of
--   the first entries only, where the tasks' records are large.
local function fail(list, lease, encoded)
  local tag = '{' .. list .. '}'
  check_is_list(list)
  if not is_held(tag, lease) then return {1} end
  call('ZREM', tag .. 'l', lease)
  local id = string.match(lease, '^[^-]*')
  local opts = cmsgpack.unpack(encoded)
  local task = load_task(tag, id) or {a = 1}
  local worker = task.o and task.o.w
  remember(task, 'failed', opts.e)
  task.er, task.ll = opts.e, nil
  if task.c or opts.n or not attempts_left(tag, task) then
    bury(list, tag, id, task, task.c and 'cancelled' or 'failed', opts.e)
    return {0, 'dead', worker}
  end
  local wait = opts.d or backoff_ms(tag, id, task)
  if wait > 0 then
    make_delayed(list, tag, id, task, now + wait)
    return {0, 'delayed', worker}
  end
  make_ready(list, tag, id, task, false)
  return {0, 'ready', worker}
end

return finish(reply_each(fail, 2, false, has_read_enough))
