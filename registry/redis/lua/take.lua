-- uses: base, life, limits, stale
-- Taking ready tasks. What a call loads of a queue is kept for the call's other entries.
local loaded, made = {}, 0

-- Check several queues at once for policies and tasks that are not plain; if there is any, each queue is loaded by
-- itself. A queue without {Q}m has no task of a higher priority: such a task has an entry there all its life.
local function load_plain(lists)
  local keys = {}
  for n, list in ipairs(lists) do
    local tag = '{' .. list .. '}'
    loaded[list] = {tag = tag}
    keys[2 * n - 1], keys[2 * n] = tag .. 'm', tag .. 'c'
  end
  if call('EXISTS', unpack(keys)) > 0 then loaded = {} end
end

local function load_queue(list, tag)
  local q = {tag = tag}
  if call('EXISTS', tag .. 'm', tag .. 'c') > 0 then
    local encoded = call('GET', tag .. 'c')
    q.rules = encoded and cmsgpack.unpack(encoded)
    q.metas = true
    q.ranked = 0 < call(
      'EXISTS', tag .. 1, tag .. 2, tag .. 3, tag .. 4, tag .. 5, tag .. 6, tag .. 7, tag .. 8, tag .. 9
    )
  end
  loaded[list] = q
  return q
end

before_end[#before_end + 1] = function()
  for _, q in pairs(loaded) do
    if q.has_started then call('HSET', q.tag .. 'n', 'starts', cmsgpack.pack(q.starts)) end
  end
end

-- The reply when the queue's policy forbids a start now, else nil.
local function held_back(list, q, leased)
  if q.rules.concurrency and not leased then return {4} end
  local gate = closed_gate(q, 1)
  if gate ~= RATE then return gate and {3, GATES[gate]} end
  local at = next_start(q)
  may_grow()
  due(list, at)
  return {3, GATES[gate], at - now}
end

local NO_OPTIONS = {}

-- The lease of a pop with these options: a hidden one when it did not ask for a lease.
local function lease_for(opts, lease, length)
  return {i = lease, l = length, f = now, w = opts.w, h = not opts.l or nil, k = opts.k and {opts.k}, m = opts.mk}
end

local function next_element(list, q)
  if q.ranked then
    for p = 9, 1, -1 do
      local e = call('RPOP', q.tag .. p)
      if e then return e, p end
    end
  end
  return call('RPOP', list), 0
end

-- `room`: how many bytes a payload may have; a task with a larger one stays where it is, and the reply is {9}.
local function pop_one(list, nonce, lease_ms, opts, room)
  local q = loaded[list] or load_queue(list, '{' .. list .. '}')
  local tag = q.tag
  local leased = opts and opts.l
  local held = q.rules and held_back(list, q, leased)
  if held then return held end
  for _ = 1, 100 do
    local e, p = next_element(list, q)
    if not e then return {1} end
    local id, generation = parse_element(e)
    local payload, task, since, stale = nil, nil, 0, false
    if id then
      payload = call('HGET', tag .. 't', id)
      task = payload and q.metas and load_task(tag, id) or nil
      stale = not payload or is_stale(task, generation)
      since = task and task.rs or 0
    else
      made = made + 1
      -- The capital A marks a payload that was never checked; no id made by a push has one.
      -- The ids of one call are in the order of the list.
      id = string.format('%011xA%03x%04x%s', now, clock[2] % 1000, made, string.sub(nonce, 1, 5))
      payload, since = e, -1
    end
    if stale then
      lift_tombstone(tag, p)
      drained[list] = true
    elseif task and task.x and task.x <= now then
      call('ZREM', tag .. 'o', id)
      bury(list, tag, id, task, 'expired')
    elseif room and #payload > room then
      call('RPUSH', p == 0 and list or tag .. p, e)
      return {9}
    else
      if since == -1 then call('HSET', tag .. 't', id, e) end
      local lease = id .. '-' .. nonce
      local rules = q.rules or {}
      local length = lease_ms > 0 and lease_ms or (task and task.l) or lease_of(rules)
      local attempt = (task and task.a or 0) + 1
      call('ZADD', tag .. 'l', now + length, lease)
      if q.starts then remember_start(q) end
      if task or leased then
        task = task or {}
        if task.x then call('ZREM', tag .. 'o', id) end
        task.s, task.a, task.x = 'l', attempt, nil
        task.o = lease_for(opts or NO_OPTIONS, lease, length)
        task.pr, task.pm = nil, nil
        save_task(tag, id, task)
        q.metas = true
      end
      due(list, now + length)
      return {0, id, payload, attempt, since, length, task and task.tp and trace_of(task) or false}
    end
  end
  return {2}
end

-- `pop_together`: several pops from a queue without rules and priorities, with a few commands for all of them. `asks`
-- are {nonce, lease ms, options}; it returns the replies to the first of them. A task that is not simple stays where it
-- is, for `pop_one`. Nothing may fail between LTRIM and the last write: Redis would not bring the tasks back.
-- Payloads are read before their sizes are known: more at a time if the last ones were small.
local AT_ONCE, MAX_AT_ONCE, SMALL_BYTES = 16, 128, 65536
local at_once = AT_ONCE

-- The encoded record of a plain task under a lease without further options. It is packed once for all leases of one
-- length, and differs only in the lease id.
local plain_leased, plain_length = {}, nil
local function pack_leased(lease, length)
  if length ~= plain_length then plain_leased, plain_length = {}, length end
  local around = plain_leased[#lease]
  if not around then
    local encoded = cmsgpack.pack({s = 'l', a = 1, o = {i = lease, l = length, f = now}})
    local from, to = string.find(encoded, lease, 1, true)
    around = {string.sub(encoded, 1, from - 1), string.sub(encoded, to + 1)}
    plain_leased[#lease] = around
  end
  return around[1] .. lease .. around[2]
end

-- The oldest elements of a list, the oldest last, as LRANGE gives them. Before Redis 7 LRANGE walks to them over the
-- whole list from its newest element on, which costs more than the pops for a million elements: LINDEX then reads them
-- one by one, counted from the other end.
local LONG = 2000
local function oldest(list, count)
  if SINCE_7 or call('LLEN', list) <= LONG * count then return call('LRANGE', list, -count, -1) end
  local elements = {}
  for j = 1, count do elements[j] = call('LINDEX', list, j - count - 1) end
  return elements
end

-- `bound`: which payload may have more bytes than there is room: none when true, only the first when false, the last
-- when nil.
local function pop_together(list, asks, from, room, bound)
  local q = loaded[list] or load_queue(list, '{' .. list .. '}')
  if q.rules or q.ranked then return {} end
  local count = math.min(at_once, #asks - from + 1)
  -- LRANGE from -0 would return the whole list.
  if count <= 0 then return {} end
  local elements = oldest(list, count)
  local ids, generations = {}, {}
  for j = #elements, 1, -1 do
    local id, generation = parse_element(elements[j])
    if not id then break end
    ids[#ids + 1], generations[#ids + 1] = id, generation
  end
  if #ids == 0 then return {} end
  local payloads = call('HMGET', q.tag .. 't', unpack(ids))
  local metas = q.metas and call('HMGET', q.tag .. 'm', unpack(ids)) or {}
  local given, leases, fields, first, read = {}, {}, {}, FAR, 0
  for j, id in ipairs(ids) do
    local nonce, length, opts = unpack(asks[from + j - 1], 1, 3)
    local task = metas[j] and cmsgpack.unpack(metas[j]) or nil
    local payload = payloads[j]
    if not payload or room <= 0 or (bound ~= nil and #payload > room and (bound or j > 1)) then break end
    if task and (task.x or is_stale(task, generations[j])) then break end
    local leased, lease = opts and opts.l, id .. '-' .. nonce
    if length == 0 then length = task and task.l or lease_of(NO_OPTIONS) end
    if leased and not (task or opts.w or opts.k or opts.mk) then
      fields[#fields + 1], fields[#fields + 2] = id, pack_leased(lease, length)
    elseif task or leased then
      task = task or {}
      task.s, task.a, task.pr, task.pm = 'l', (task.a or 0) + 1, nil, nil
      task.o = lease_for(opts or NO_OPTIONS, lease, length)
      fields[#fields + 1], fields[#fields + 2] = id, cmsgpack.pack(task)
    end
    leases[2 * j - 1], leases[2 * j] = score(now + length), lease
    local trace = task and task.tp and trace_of(task) or false
    given[j] = {0, id, payload, task and task.a or 1, task and task.rs or 0, length, trace}
    first, room, read = math.min(first, now + length), room - #payload, read + #payload
  end
  at_once = read < SMALL_BYTES and math.min(2 * at_once, MAX_AT_ONCE) or AT_ONCE
  if #given == 0 then return given end
  call('LTRIM', list, 0, -#given - 1)
  call('ZADD', q.tag .. 'l', unpack(leases))
  if #fields > 0 then
    call('HMSET', q.tag .. 'm', unpack(fields))
    q.metas = true
  end
  due(list, first)
  return given
end
