-- uses: base, life, lost, attempts, finishing, heads
-- Sweep: what time does to the queues that are due, oldest due first: leases lapse, delays end, expired tasks die,
-- traces go.
-- KEYS: none. ARGV after the common three: queues at most, moves at most per queue and kind; after so many no further
--   queue.
-- Reply: {queues swept, moves made, the time}.
local moves, per_kind = 0, tonumber(ARGV[5])
-- Forgetting an acknowledged lease is one command for many.
local TRACES_A_MOVE = 10

local function lapse_leases(list, g)
  local leases = call('ZREVRANGEBYSCORE', g .. 'l', now, '-inf', 'LIMIT', 0, per_kind)
  -- From the task pushed last to the first: each goes in front, so those of one sweep keep the order in which they were
  -- pushed.
  table.sort(leases, function(a, b) return a > b end)
  for _, lease in ipairs(leases) do
    call('ZREM', g .. 'l', lease)
    local id = string.match(lease, '^[^-]*')
    local m = known(g, id)
    if m or not is_forgotten(list, g, id) then
      m = m or {}
      local reason = (not m.o or m.o.h) and 'handover_expired' or 'lease_expired'
      if not taken_away(g, m, lease) then lapse(list, g, id, m, reason) end
    end
    moves = moves + 1
  end
end

local function end_delays(list, g)
  for _, id in ipairs(call('ZRANGEBYSCORE', g .. 'd', '-inf', now, 'LIMIT', 0, per_kind)) do
    call('ZREM', g .. 'd', id)
    local m = known(g, id)
    if m then make_ready(list, g, id, m, false) end
    moves = moves + 1
  end
end

local function expire(list, g)
  for _, id in ipairs(call('ZRANGEBYSCORE', g .. 'o', '-inf', now, 'LIMIT', 0, per_kind)) do
    call('ZREM', g .. 'o', id)
    local m = known(g, id)
    if m and m.s == 'r' then leave_tombstone(list, g, m) end
    if m and m.s == 'd' then call('ZREM', g .. 'd', id) end
    if m and (m.s == 'r' or m.s == 'd') then bury(list, g, id, m, 'expired') end
    moves = moves + 1
  end
end

local function forget_old(list, g)
  for _, id in ipairs(call('ZRANGEBYSCORE', g .. 'f', '-inf', now, 'LIMIT', 0, per_kind)) do
    call('ZREM', g .. 'f', id)
    no_longer_asked_for(list, g, id)
    moves = moves + 1
  end
  trim(list, g)
  trim_dead(list, g, per_kind)
  for kind, before in pairs({x = now, e = now - done_for(g)}) do
    for _, id in ipairs(call('ZRANGEBYSCORE', g .. kind, '-inf', score(before), 'LIMIT', 0, per_kind)) do
      call('ZREM', g .. kind, id)
      forget(list, g, id)
      moves = moves + 1
    end
  end
  local traces = math.min(call('ZCOUNT', g .. 'a', '-inf', now), TRACES_A_MOVE * per_kind)
  if traces > 0 then
    call('ZREMRANGEBYRANK', g .. 'a', 0, traces - 1)
    moves = moves + math.floor(traces / TRACES_A_MOVE)
  end
end

-- A daemon ended before its batch was complete.
local function forget_staged(list, g)
  local ids = call('ZRANGEBYSCORE', g .. 'b', '-inf', now, 'LIMIT', 0, per_kind)
  if #ids == 0 then return end
  call('ZREM', g .. 'b', unpack(ids))
  call('HDEL', g .. 't', unpack(ids))
  moves = moves + #ids
end

-- Tombstones at the heads of the lists go; those further in go when they get there.
local function clear_heads(list, g)
  for p = 0, 9 do
    if call('EXISTS', ready_list(list, g, p)) == 0 then call('HDEL', g .. 'n', 's' .. p) end
    moves = moves + clear_head(list, g, p, per_kind)
  end
end

-- A pause that was said to end is over.
local function resume(list, g)
  local rules = policy_of(g)
  if not rules.paused_until or now < rules.paused_until then return end
  may_grow()
  rules.paused, rules.paused_until = nil, nil
  keep_policy(list, g, rules)
  wake(list)
end

local function next_due(list, g)
  local at = policy_of(g).paused_until or FAR
  for _, kind in ipairs({'l', 'd', 'o', 'x', 'e', 'f', 'a', 'b'}) do
    local first = call('ZRANGE', g .. kind, 0, 0, 'WITHSCORES')
    if first[2] then at = math.min(at, tonumber(first[2]) + (kind == 'e' and done_for(g) or 0)) end
  end
  local stale = call('HVALS', g .. 'n')
  if #stale > 0 and at > now + 5000 then at = now + 5000 end
  return at
end

local function sweep(list)
  local g = '{' .. list .. '}'
  must_be_list(list)
  expire(list, g)
  lapse_leases(list, g)
  end_delays(list, g)
  forget_old(list, g)
  forget_staged(list, g)
  resume(list, g)
  clear_heads(list, g)
  dues[list], drained[list] = nil, nil
  if holds_nothing({list}) then
    call('ZREM', SPACE .. 'index', list)
  else
    -- Where more is due than was done here, the others have their turn first.
    local at = math.max(next_due(list, g), now)
    call('ZREM', SPACE .. 'index', list)
    call('ZADD', SPACE .. 'index', at, list)
  end
  -- A limited queue lets the next start: pollers whose own timer was lost look again.
  if policy_of(g).rate then wake(list) end
end

local queues, swept = call('ZRANGEBYSCORE', SPACE .. 'index', '-inf', now, 'LIMIT', 0, ARGV[4]), 0
for _, list in ipairs(queues) do
  -- Others wait for Redis meanwhile; those left are still due.
  if moves >= per_kind then break end
  swept = swept + 1
  local ok = pcall(sweep, list)
  if not ok then
    -- One queue in an unexpected state must not keep the others from being swept; it is tried again soon.
    dues[list], drained[list] = nil, nil
    call('ZREM', SPACE .. 'index', list)
    call('ZADD', SPACE .. 'index', now + 1000, list)
  end
end
return finish({swept, moves, now})
