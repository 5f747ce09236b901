-- uses: base, life, each
-- Run: a delayed task is ready now.
-- KEYS: the list of each entry. ARGV per entry: task id. Reply per entry: {0} · {1} no such task · {2, state} not
--   delayed · {8, text}.
local function run(list, id)
  local tag = '{' .. list .. '}'
  check_is_list(list)
  if call('HEXISTS', tag .. 't', id) == 0 then return {1} end
  local task = load_task(tag, id) or {s = 'r'}
  if call('ZREM', tag .. 'd', id) == 0 then return {2, task.s} end
  make_ready(list, tag, id, task, false)
  return {0}
end

return finish(reply_each(run, 1))
