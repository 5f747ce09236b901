-- uses: base, life, finishing, heads, aside, each
-- Undo: bring back what an operation set aside, the last record first: each ready task goes to the head, so together
-- they have their order again. A limited number of records per call.
-- KEYS: the list of each entry. ARGV per entry: the operation; the number of its list, or 'left'; records at most.
-- Reply per entry: {0, how many came back, 1 when there is more, reason, how many did not come back for it,
--   reason, …} · {6|7|8, text}. The reasons: key_taken; expired, its ttl or its time as a dead or done task is over;
--   no_room, dead_max or done_max is reached; exists, there is a task with this id; started, it was handed out since;
--   gone, it has ended or was deleted since.
local back = {}

local function is_taken(tag, id, key)
  local other = call('HGET', tag .. 'k', key)
  return other and other ~= id
end

-- The task waits again as it did; its ttl and its key hold again.
local function wait_again(list, tag, id, task, due_at)
  if task.k then call('HSET', tag .. 'k', task.k, id) end
  if task.x then call('ZADD', tag .. 'o', task.x, id) end
  if due_at then make_delayed(list, tag, id, task, due_at) else make_ready(list, tag, id, task, true) end
end

local function why_not_wait(tag, id, task)
  if task.x and task.x <= now then return 'expired' end
  if task.k and is_taken(tag, id, task.k) then return 'key_taken' end
end

local function back_among_waiting(kind, list, tag, id, payload, encoded, at)
  local task = encoded ~= '' and unpack_task(encoded) or {}
  local reason = why_not_wait(tag, id, task)
  if reason then return reason end
  -- Its tombstone names the generation that it had.
  if kind == 't' then task.g = (task.g or 0) + 1 end
  call('HSET', tag .. 't', id, payload)
  wait_again(list, tag, id, task, tonumber(at))
end

local function is_over(tag, kind, task, at)
  if kind == 'x' then return at <= now end
  local done_until = (task.z or 0) + done_for(tag)
  if kind == 'e' then return done_until <= now end
  return at <= now and (task.u or done_until <= now)
end

local function back_among_ended(kind, list, tag, id, payload, encoded, at)
  local task, score_at = unpack_task(encoded), tonumber(at)
  if is_over(tag, kind, task, score_at) then return 'expired' end
  local limit = kind == 'x' and (retention_of(tag).dead_max or MAX_DEAD) or (retention_of(tag).done_max or MAX_DONE)
  if kind ~= 'f' and call('ZCARD', tag .. kind) >= limit then return 'no_room' end
  call('HSET', tag .. 't', id, payload)
  call('HSET', tag .. 'm', id, encoded)
  call('ZADD', tag .. kind, at, id)
  due(list, kind == 'e' and score_at + done_for(tag) or score_at)
end

for kind, bring in pairs({
  r = back_among_waiting, t = back_among_waiting, d = back_among_waiting,
  x = back_among_ended, e = back_among_ended, f = back_among_ended,
}) do
  back[kind] = function(list, tag, id, ...)
    if call('HEXISTS', tag .. 't', id) == 1 then return 'exists' end
    return bring(kind, list, tag, id, ...)
  end
end

back.raw = function(list, tag, _, e, p)
  call('RPUSH', ready_list(list, tag, p), e)
  wake(list)
end

-- A retried task that has waited since is dead again.
back.w = function(list, tag, id, was)
  local task = load_task(tag, id)
  if not task or task.s == 'x' or task.s == 'e' then return 'gone' end
  if task.s == 'l' or (task.a or 0) ~= was.a then return 'started' end
  local forgotten = dead_until(tag, task, was.z)
  if forgotten <= now then return 'expired' end
  if call('ZCARD', tag .. 'x') >= (retention_of(tag).dead_max or MAX_DEAD) then return 'no_room' end
  if task.s == 'd' then call('ZREM', tag .. 'd', id) else leave_tombstone(list, tag, task) end
  free_key(tag, id, task)
  call('ZADD', tag .. 'x', score(forgotten), id)
  task.s, task.du = 'x', nil
  task.n, task.nn, task.x, task.c, task.q, task.y, task.z = was.n, was.nn, was.x, was.c, was.q, was.y, was.z
  save_task(tag, id, task)
  publish_end(list, id, task)
  due(list, forgotten)
end

-- A cancelled task waits again.
back.c = function(list, tag, id, was)
  local task = load_task(tag, id)
  if not task or task.s ~= 'x' or task.y ~= 'cancelled' or task.z ~= was.z then return 'gone' end
  local reason = why_not_wait(tag, id, task)
  if reason then return reason end
  call('ZREM', tag .. 'x', id)
  task.y, task.z = nil, nil
  wait_again(list, tag, id, task, was.s == 'd' and was.du or nil)
end

-- The holder of a marked task need not stop.
back.m = function(_, tag, id, lease)
  local task = load_task(tag, id)
  if not task or task.s ~= 'l' or not task.c or (task.o and task.o.i or '') ~= lease then return 'gone' end
  task.c = nil
  save_task(tag, id, task)
end

local function undo(list, operation, number, limit)
  local tag = '{' .. list .. '}'
  local begin = 'undo:' .. tag .. operation .. ':'
  local from, left = begin .. number, begin .. 'left'
  local count, moves, reasons, reply = 0, 0, {}, {0, 0, 0}
  check_is_list(list)
  may_grow()
  call('SET', begin .. 'undone', 1, 'PX', ASIDE_FOR)
  while moves < tonumber(limit) and not is_enough() do
    local encoded = call('LINDEX', from, -1)
    if not encoded then break end
    moves, aside_bytes = moves + 1, aside_bytes + #encoded
    local record = cmsgpack.unpack(encoded)
    local reason = back[record[1]](list, tag, unpack(record, 2))
    if reason then
      call('LPUSH', left, encoded)
      aside_until[left] = true
      reasons[reason] = (reasons[reason] or 0) + 1
    else
      count = count + 1
    end
    call('RPOP', from)
  end
  reply[2], reply[3] = count, call('EXISTS', from)
  for reason, number_of in pairs(reasons) do
    reply[#reply + 1], reply[#reply + 2] = reason, number_of
  end
  return reply
end

return finish(reply_each(undo, 3))
