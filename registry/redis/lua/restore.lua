-- uses: base, life, history, enter, finishing, each
-- Restore: store a task of an export again, in the state it had. A task with this id that is there already stays as it
-- is. A leased one is given back: ready at the head, the attempt not counted.
-- KEYS: the list of each entry. ARGV per entry: task id, payload, Task.
-- Reply per entry: {0} stored · {1} a task with this id exists · {6, text} wrong type · {7, text} full · {8, text}
--   refused · {10} its key is taken.

-- A new generation, when the lists hold tombstones: one of them may be an element of this id, and would be alive again.
local generations = {}
local function new_generation(list, tag)
  local found = generations[list]
  if found == nil then
    found = false
    local counts = call('HMGET', tag .. 'n', 's0', 's1', 's2', 's3', 's4', 's5', 's6', 's7', 's8', 's9')
    for _, stale in ipairs(counts) do found = found or (stale and now % 1e12) end
    generations[list] = found
  end
  return found or nil
end

local function restore_ready(list, tag, id, task, head)
  call(head and 'RPUSH' or 'LPUSH', ready_list(list, tag, task.p), element(id, task))
  -- A plain task has no record.
  if next(task) then
    task.s = 'r'
    save_task(tag, id, task)
  end
  due(list, task.x or FAR)
  wake(list)
end

local function restore_dead(list, tag, id, task)
  task.z = task.z or now
  local forgotten = dead_until(tag, task, task.z)
  call('ZADD', tag .. 'x', score(forgotten), id)
  save_task(tag, id, task)
  due(list, forgotten)
  trim_dead(list, tag, 2)
end

local function restore_done(list, tag, id, task)
  task.z = task.z or now
  call('ZADD', tag .. (task.ku and 'f' or 'e'), score(task.ku or task.z), id)
  save_task(tag, id, task)
  due(list, task.ku or task.z + done_for(tag))
  trim(list, tag)
end

local function restore(list, id, payload, encoded)
  local tag = '{' .. list .. '}'
  if call('HEXISTS', tag .. 't', id) == 1 then return {1} end
  if not is_list(list) then return {6, 'WRONGTYPE'} end
  local task = cmsgpack.unpack(encoded)
  local state = task.s or 'r'
  task.s = nil
  local waits = state ~= 'x' and state ~= 'e'
  if waits and task.k and call('HEXISTS', tag .. 'k', task.k) == 1 then return {10} end
  call('HSET', tag .. 't', id, payload)
  task.g = new_generation(list, tag)
  if waits and task.k then call('HSET', tag .. 'k', task.k, id) end
  if state == 'l' then
    remember(task, 'released')
    task.a, task.x, task.rs, task.rh = math.max(0, (task.a or 1) - 1), nil, now, true
    if task.c then
      bury(list, tag, id, task, 'cancelled')
    else
      restore_ready(list, tag, id, task, true)
    end
    return {0}
  end
  if waits and task.x then call('ZADD', tag .. 'o', task.x, id) end
  if state == 'd' then
    make_delayed(list, tag, id, task, task.du)
  elseif waits then
    restore_ready(list, tag, id, task, false)
  else
    task.s = state;
    (state == 'x' and restore_dead or restore_done)(list, tag, id, task)
  end
  return {0}
end

return finish(reply_each(restore, 3))
