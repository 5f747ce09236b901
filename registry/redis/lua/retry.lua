-- uses: base, life, aside, each
-- Retry: a dead task is ready again, with as many more attempts as it had at first.
-- KEYS: the list of each entry. ARGV per entry: task id; '1' to change nothing and only report, 'd' and the ms after
--   which it is ready, or ''; after a space, where its state before is set aside.
-- Reply per entry: {0, its key or ''[, bytes set aside]} · {1} not dead · {2} its undo has begun · {10} its key is
--   taken · {11} it is not JSON · {8, text}; of the first entries only, where the tasks' records are large.
local function retry(list, id, how_and_place)
  local tag = '{' .. list .. '}'
  local how, place = string.match(how_and_place, '^(%w*) ?(.*)$')
  check_is_list(list)
  if place ~= '' and is_undone(tag, place) then return {2} end
  local task = load_task(tag, id)
  if not task or task.s ~= 'x' then return {1} end
  if task.y == 'not_json' then return {11} end
  if task.k then
    local other = call('HGET', tag .. 'k', task.k)
    if other and other ~= id then return {10} end
  end
  if how == '1' then return {0, task.k or ''} end
  call('ZREM', tag .. 'x', id)
  local before = aside_bytes
  set_aside(
    tag, place, 'w', id,
    {n = task.n, nn = task.nn, x = task.x, c = task.c, q = task.q, y = task.y, z = task.z, a = task.a or 0}
  )
  if task.k then call('HSET', tag .. 'k', task.k, id) end
  task.nn = task.nn or task.n or policy_of(tag).attempts or ATTEMPTS
  task.n = (task.a or 0) + task.nn
  -- Its last lease may still acknowledge it, as long as nobody else has it.
  task.x, task.c, task.q, task.y, task.z = nil, nil, nil, nil, nil
  local wait = tonumber(string.match(how, '^d(%d+)$')) or 0
  if wait > 0 then make_delayed(list, tag, id, task, now + wait) else make_ready(list, tag, id, task, false) end
  return {0, task.k or '', place ~= '' and aside_bytes - before or nil}
end

return finish(reply_each(retry, 2, false, has_read_enough))
