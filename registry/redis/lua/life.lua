-- uses: base
-- The moves between the states of a task. `task` is the unpacked entry of {Q}m, `load_task` returns nil where
-- there is none.
local DAY = 86400000
-- The defaults of a policy, in its units.
local LEASE, ATTEMPTS, BACKOFF = 60, 25, 10
local KEEP_DONE, MAX_DONE, KEEP_DEAD, MAX_DEAD = 3600, 1000, 2592000, 100000
-- A task whose end a client waits for is kept for at least this long after its end, ms.
local MIN_KEPT_FOR_WAITERS = 60000

-- A cache of scores as text: Redis turns a number into text with printf, and back into a number, and most scores of a
-- call are equal.
local score_of = {}
local function score(at)
  local text = score_of[at]
  if not text then
    text = string.format('%.0f', at)
    score_of[at] = text
  end
  return text
end

-- A call that reads large records blocks Redis for everybody: it stops early, and its remaining entries go with the
-- next call.
local MAX_BYTES_READ = 1048576
local bytes_read = 0
local function has_read_enough() return bytes_read >= MAX_BYTES_READ end

local function unpack_task(encoded)
  if not encoded then return nil end
  bytes_read = bytes_read + #encoded
  return cmsgpack.unpack(encoded)
end

-- The trace context of a task with a traceparent: that, and on a line of its own the tracestate, if there is one.
local function trace_of(task) return task.ts and task.tp .. '\n' .. task.ts or task.tp end

local function load_task(tag, id) return unpack_task(call('HGET', tag .. 'm', id)) end

local function save_task(tag, id, task)
  call('HSET', tag .. 'm', id, cmsgpack.pack(task))
end

local policies = {}
local function policy_of(tag)
  local rules = policies[tag]
  if not rules then
    local encoded = call('GET', tag .. 'c')
    rules = encoded and cmsgpack.unpack(encoded) or {}
    policies[tag] = rules
  end
  return rules
end

local function retention_of(tag) return policy_of(tag).retention or {} end

-- The seconds of a rule as ms. A rule is a whole number of ms; rounding corrects the error of the binary fraction.
local function in_ms(seconds) return math.floor(seconds * 1000 + 0.5) end

-- The length of a queue's leases, ms.
local function lease_of(rules) return in_ms(rules.lease or LEASE) end

-- A lease has ended: where the queue limits their number, another task may start now.
local function slot_freed(list, tag)
  if policy_of(tag).concurrency then wake(list) end
end

-- Refuse an entry before it changes anything when another program keeps something else under the queue's name: Redis
-- does not roll back what a script did before it failed, and a task would be left in no list.
local function check_is_list(list) call('LLEN', list) end

-- Whether the lease is still held. One that has run out is not, even if the sweeper has not removed it yet.
local function is_held(tag, lease)
  local ends = call('ZSCORE', tag .. 'l', lease)
  return ends and tonumber(ends) > now
end

local function ready_list(list, tag, priority)
  return (priority or 0) == 0 and list or tag .. priority
end

local function element(id, task)
  local generation = task and task.g or 0
  return generation == 0 and '\1' .. id or '\1' .. id .. ':' .. generation
end

-- Put a task into the ready list of its priority: at the head (right) or the tail (left). The id of a `new` task says
-- since when it is ready.
-- A task that returns to the tail gets a new generation, so that a list of the tasks does not mistake its element
-- for the one at its former place.
local function make_ready(list, tag, id, task, head, new)
  if not head and not new then task.g = (task.g or 0) + 1 end
  call(head and 'RPUSH' or 'LPUSH', ready_list(list, tag, task.p), element(id, task))
  task.s, task.du = 'r', nil
  if not new then task.rs, task.rh = now, head or nil end
  save_task(tag, id, task)
  due(list, task.x or FAR)
  wake(list)
end

local function make_delayed(list, tag, id, task, at)
  call('ZADD', tag .. 'd', at, id)
  task.s, task.du = 'd', at
  save_task(tag, id, task)
  slot_freed(list, tag)
  due(list, math.min(at, task.x or FAR))
end

local function lift_tombstone(tag, priority)
  local field = 's' .. (priority or 0)
  if call('HINCRBY', tag .. 'n', field, -1) <= 0 then call('HDEL', tag .. 'n', field) end
end

-- The element of a ready task cannot be taken out of its list in O(1): it stays there as a tombstone of an old
-- generation.
local function leave_tombstone(list, tag, task)
  task.g = (task.g or 0) + 1
  call('HINCRBY', tag .. 'n', 's' .. (task.p or 0), 1)
  due(list, now)
end

local function free_key(tag, id, task)
  if task.k and call('HGET', tag .. 'k', task.k) == id then call('HDEL', tag .. 'k', task.k) end
end

local function publish_end(list, id, task)
  if task.w then ended[#ended + 1] = list .. '\t' .. id end
end

-- When to forget a task that died at `died`.
local function dead_until(tag, task, died)
  return died + math.max(in_ms(retention_of(tag).dead or KEEP_DEAD), task.w and MIN_KEPT_FOR_WAITERS or 0)
end

-- Forget the oldest dead tasks beyond the queue's limit, `limit` at most. Returns how many are still over the limit.
local function trim_dead(list, tag, limit)
  local excess = call('ZCARD', tag .. 'x') - (retention_of(tag).dead_max or MAX_DEAD)
  if excess <= 0 then return 0 end
  local gone = call('ZRANGE', tag .. 'x', 0, math.min(excess, limit) - 1)
  call('ZREM', tag .. 'x', unpack(gone))
  call('HDEL', tag .. 't', unpack(gone))
  call('HDEL', tag .. 'm', unpack(gone))
  drained[list] = true
  return excess - #gone
end

-- How many tasks of each queue this call has made dead. The sweeper collects the numbers.
local deaths = {}
before_end[#before_end + 1] = function()
  for list, count in pairs(deaths) do call('HINCRBY', SPACE .. 'deaths', list, count) end
end

local function bury(list, tag, id, task, reason, err)
  deaths[list] = (deaths[list] or 0) + 1
  local forget = dead_until(tag, task, now)
  call('ZADD', tag .. 'x', score(forget), id)
  task.s, task.y, task.z, task.er, task.du = 'x', reason, now, err or task.er, nil
  free_key(tag, id, task)
  save_task(tag, id, task)
  publish_end(list, id, task)
  slot_freed(list, tag)
  due(list, forget)
  -- Where there are too many, each new dead task removes two: one for itself, and one more.
  trim_dead(list, tag, 2)
end
