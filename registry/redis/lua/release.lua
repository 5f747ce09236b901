-- uses: base, life, history, each
-- Release: the holder gives the task back, to the head or after a delay; the attempt is not counted.
-- KEYS: the list of each entry. ARGV per entry: lease id, delay ms. Reply per entry: {0} · {1} the lease is lost · {8,
--   text}.
local function release(list, lease, wait)
  local tag = '{' .. list .. '}'
  check_is_list(list)
  if not is_held(tag, lease) then return {1} end
  wait = tonumber(wait)
  call('ZREM', tag .. 'l', lease)
  local id = string.match(lease, '^[^-]*')
  local task = load_task(tag, id) or {a = 1}
  remember(task, 'released')
  task.a, task.ll = math.max(0, task.a - 1), nil
  if task.c then
    bury(list, tag, id, task, 'cancelled')
  elseif wait > 0 then
    make_delayed(list, tag, id, task, now + wait)
  else
    make_ready(list, tag, id, task, true)
  end
  return {0}
end

return finish(reply_each(release, 2, true))
