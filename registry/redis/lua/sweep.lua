-- uses: base, life, lost, attempts, finishing, heads
-- Sweep: apply the passing of time to the queues that are due, the longest due first: leases lapse, delays end, expired
-- tasks die, traces of acknowledged leases are removed.
-- KEYS: none. ARGV after the common three: queues at most, moves at most per queue and kind; after this many moves in
--   all, no further queue.
-- Reply: {queues swept, moves made, the time, {Q, how many of its tasks this sweep made dead as poison, …}, Q, how many
--   of its tasks died since the last sweep of any daemon, those included, …}.
local moves, per_kind = 0, tonumber(ARGV[5])
-- Forgetting an acknowledged lease is one command for many.
local TRACES_PER_MOVE = 10

local function lapse_leases(list, tag)
  local leases = call('ZREVRANGEBYSCORE', tag .. 'l', now, '-inf', 'LIMIT', 0, per_kind)
  -- From the task pushed last to the first: each goes to the head, so the tasks of one sweep keep the order in which
  -- they were pushed.
  table.sort(leases, function(a, b) return a > b end)
  for _, lease in ipairs(leases) do
    call('ZREM', tag .. 'l', lease)
    local id = string.match(lease, '^[^-]*')
    local task = load_task(tag, id)
    if task or not forgotten_in_handover(list, tag, id) then
      task = task or {}
      local reason = (not task.o or task.o.h) and 'handover_expired' or 'lease_expired'
      if not cancelled_in_handover(tag, task, lease) then lapse(list, tag, id, task, reason) end
    end
    moves = moves + 1
  end
end

local function end_delays(list, tag)
  for _, id in ipairs(call('ZRANGEBYSCORE', tag .. 'd', '-inf', now, 'LIMIT', 0, per_kind)) do
    call('ZREM', tag .. 'd', id)
    local task = load_task(tag, id)
    if task then make_ready(list, tag, id, task, false) end
    moves = moves + 1
  end
end

local function expire(list, tag)
  for _, id in ipairs(call('ZRANGEBYSCORE', tag .. 'o', '-inf', now, 'LIMIT', 0, per_kind)) do
    call('ZREM', tag .. 'o', id)
    local task = load_task(tag, id)
    if task and task.s == 'r' then leave_tombstone(list, tag, task) end
    if task and task.s == 'd' then call('ZREM', tag .. 'd', id) end
    if task and (task.s == 'r' or task.s == 'd') then bury(list, tag, id, task, 'expired') end
    moves = moves + 1
  end
end

local function forget_old(list, tag)
  for _, id in ipairs(call('ZRANGEBYSCORE', tag .. 'f', '-inf', now, 'LIMIT', 0, per_kind)) do
    call('ZREM', tag .. 'f', id)
    end_kept_time(list, tag, id)
    moves = moves + 1
  end
  trim(list, tag)
  trim_dead(list, tag, per_kind)
  for kind, before in pairs({x = now, e = now - done_for(tag)}) do
    for _, id in ipairs(call('ZRANGEBYSCORE', tag .. kind, '-inf', score(before), 'LIMIT', 0, per_kind)) do
      call('ZREM', tag .. kind, id)
      forget(list, tag, id)
      moves = moves + 1
    end
  end
  local traces = math.min(call('ZCOUNT', tag .. 'a', '-inf', now), TRACES_PER_MOVE * per_kind)
  if traces > 0 then
    call('ZREMRANGEBYRANK', tag .. 'a', 0, traces - 1)
    moves = moves + math.floor(traces / TRACES_PER_MOVE)
  end
end

-- Forget the parts of batches whose daemon ended before they were complete.
local function forget_staged(list, tag)
  local ids = call('ZRANGEBYSCORE', tag .. 'b', '-inf', now, 'LIMIT', 0, per_kind)
  if #ids == 0 then return end
  call('ZREM', tag .. 'b', unpack(ids))
  call('HDEL', tag .. 't', unpack(ids))
  moves = moves + #ids
end

-- Remove tombstones at the heads of the lists; those further in are removed when they reach the head.
local function clear_heads(list, tag)
  for p = 0, 9 do
    if call('EXISTS', ready_list(list, tag, p)) == 0 then call('HDEL', tag .. 'n', 's' .. p) end
    moves = moves + clear_head(list, tag, p, per_kind)
  end
end

-- End a pause whose time is over.
local function resume(list, tag)
  local rules = policy_of(tag)
  if not rules.paused_until or now < rules.paused_until then return end
  may_grow()
  rules.paused, rules.paused_until = nil, nil
  save_policy(list, tag, rules)
  wake(list)
end

local function next_due(list, tag)
  local at = policy_of(tag).paused_until or FAR
  for _, kind in ipairs({'l', 'd', 'o', 'x', 'e', 'f', 'a', 'b'}) do
    local first = call('ZRANGE', tag .. kind, 0, 0, 'WITHSCORES')
    if first[2] then at = math.min(at, tonumber(first[2]) + (kind == 'e' and done_for(tag) or 0)) end
  end
  local stale = call('HVALS', tag .. 'n')
  if #stale > 0 and at > now + 5000 then at = now + 5000 end
  return at
end

local function sweep(list)
  local tag = '{' .. list .. '}'
  check_is_list(list)
  expire(list, tag)
  lapse_leases(list, tag)
  end_delays(list, tag)
  forget_old(list, tag)
  forget_staged(list, tag)
  resume(list, tag)
  clear_heads(list, tag)
  dues[list], drained[list] = nil, nil
  if holds_nothing({list}) then
    call('ZREM', INDEX, list)
  else
    -- If more is due than was done here, other queues have their turn first.
    local at = math.max(next_due(list, tag), now)
    call('ZREM', INDEX, list)
    call('ZADD', INDEX, at, list)
  end
  -- A queue with a rate may let the next task start: wake pollers whose own timer was lost.
  if policy_of(tag).rate then wake(list) end
end

local queues, swept = call('ZRANGEBYSCORE', INDEX, '-inf', now, 'LIMIT', 0, ARGV[4]), 0
for _, list in ipairs(queues) do
  -- Other clients wait for Redis meanwhile; the remaining queues are still due.
  if moves >= per_kind then break end
  swept = swept + 1
  local ok = pcall(sweep, list)
  if not ok then
    -- One queue in an unexpected state must not keep the others from being swept; it is tried again soon.
    dues[list], drained[list] = nil, nil
    call('ZREM', INDEX, list)
    call('ZADD', INDEX, now + 1000, list)
  end
end
local reply = {swept, moves, now, {}}
for list, count in pairs(poisoned) do reply[4][#reply[4] + 1], reply[4][#reply[4] + 2] = list, count end
for list, count in pairs(deaths) do reply[#reply + 1], reply[#reply + 2] = list, count end
deaths = {}
local others = call('HGETALL', SPACE .. 'deaths')
for _, word in ipairs(others) do reply[#reply + 1] = word end
if #others > 0 then call('DEL', SPACE .. 'deaths') end
return finish(reply)
