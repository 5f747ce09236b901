-- uses: base, life, history
-- Done: a task is kept with its result for as long as its push or the queue's retention asks; else forgotten at once.
local function forget(list, tag, id)
  call('HDEL', tag .. 't', id)
  call('HDEL', tag .. 'm', id)
  drained[list] = true
end

local function save_policy(list, tag, rules)
  if next(rules) == nil then
    call('DEL', tag .. 'c')
    drained[list] = true
  else
    call('SET', tag .. 'c', cmsgpack.pack(rules))
    due(list, FAR)
  end
end

-- How long a queue keeps its done tasks, ms.
local function done_for(tag) return in_ms(retention_of(tag).done or KEEP_DONE) end

-- Forget the oldest done tasks beyond the queue's limit; those that a push asked to keep are in {Q}f, and not counted.
-- Returns how many are still over the limit.
local MAX_TRIMMED = 1000
local function trim(list, tag)
  local excess = call('ZCARD', tag .. 'e') - (retention_of(tag).done_max or MAX_DONE)
  if excess <= 0 then return 0 end
  local gone = call('ZRANGE', tag .. 'e', 0, math.min(excess, MAX_TRIMMED) - 1)
  call('ZREM', tag .. 'e', unpack(gone))
  call('HDEL', tag .. 't', unpack(gone))
  call('HDEL', tag .. 'm', unpack(gone))
  drained[list] = true
  return excess - #gone
end

-- The done tasks of this call, written together: their records by queue, {id, record, id, record, …}, and the scores of
-- both sets by their keys, {score, id, score, id, …}.
local ends, end_records = {}, {}
-- Lua cannot pass more arguments than this to one command.
local MAX_ARGUMENTS = 2000

local function write_ends(list)
  local tag, fields = '{' .. list .. '}', end_records[list]
  if not fields then return end
  call('HMSET', tag .. 'm', unpack(fields))
  for _, key in ipairs({tag .. 'e', tag .. 'f'}) do
    if ends[key] then call('ZADD', key, unpack(ends[key])) end
    ends[key] = nil
  end
  trim(list, tag)
  end_records[list] = nil
end

before_end[#before_end + 1] = function()
  for _, list in ipairs(KEYS) do write_ends(list) end
end

local function make_done(list, tag, id, task, result, handed_over)
  free_key(tag, id, task)
  slot_freed(list, tag)
  -- The queue's retention does not apply to a task that was handed over without a lease, unless it had a key.
  local stay = handed_over and not task.k and 0 or done_for(tag)
  local kept_for = math.max(task.r or 0, task.i and DAY or 0)
  local lease = task.o and task.o.i
  remember(task, 'done')
  if result == '\255' then
    task.h[#task.h].v = 'too_large'
    result = ''
  end
  task.s, task.v, task.z, task.ll = 'e', result ~= '' and result or nil, now, lease
  publish_end(list, id, task)
  if stay == 0 and kept_for == 0 then return forget(list, tag, id) end
  task.u, task.ku = stay == 0 or nil, kept_for > 0 and now + kept_for or nil
  local key = tag .. (kept_for > 0 and 'f' or 'e')
  local scores, fields = ends[key] or {}, end_records[list] or {}
  local n, at = #scores, #fields
  scores[n + 1], scores[n + 2] = score(kept_for > 0 and now + kept_for or now), id
  fields[at + 1], fields[at + 2] = id, cmsgpack.pack(task)
  ends[key], end_records[list] = scores, fields
  due(list, now + (kept_for > 0 and kept_for or stay))
  if at + 2 >= MAX_ARGUMENTS then write_ends(list) end
end

-- The time that a push asked for has ended: from now on the queue's retention applies, as to its other done tasks.
local function end_kept_time(list, tag, id)
  local task = load_task(tag, id)
  if not task or task.u or task.z + done_for(tag) <= now then return forget(list, tag, id) end
  call('ZADD', tag .. 'e', score(task.z), id)
end

-- Forget a task that never ended and has left its list or set, and notify the clients that wait for its end. `task` is
-- its record, nil for none.
local function drop(list, tag, id, task)
  if task then
    free_key(tag, id, task)
    publish_end(list, id, task)
    call('ZREM', tag .. 'o', id)
  end
  forget(list, tag, id)
end
