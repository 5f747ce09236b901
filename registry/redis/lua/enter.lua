-- uses: base, life
-- Storing one task with the options of its push; and the length of a queue.

-- The head of the ids of this call's tasks: Redis's time in ms and µs. The tail has ten digits and rises with each push
-- of a daemon. So ids are in the order of the pushes, whichever daemons they came through, and where two moments are
-- equal the id decides.
local STAMP = string.format('%011x%03x', now, clock[2] % 1000)

-- `payload` is nil when it is stored already.
local function enter(list, tag, id, payload, opts, remembered)
  local task = {
    p = opts.p, n = opts.n, b = opts.b, l = opts.l, k = opts.k, r = opts.r, tp = opts.tp, ts = opts.ts, w = opts.w,
    x = opts.x and now + opts.x,
  }
  task.i = remembered or nil
  if payload then call('HSET', tag .. 't', id, payload) end
  if opts.k then call('HSET', tag .. 'k', opts.k, id) end
  if task.x then call('ZADD', tag .. 'o', task.x, id) end
  local at = opts.at or (opts.d and now + opts.d)
  if at and at > now then make_delayed(list, tag, id, task, at) else make_ready(list, tag, id, task, false, true) end
end

-- The refusal of a push whose task would expire, by its own ttl or the queue's, before it is due, so that nobody could
-- ever get it; nil or false when it would not.
local function expires_first(opts)
  local wait = opts.d or (opts.at and opts.at - now)
  return opts.x and wait and wait >= opts.x and {12, opts.x, wait}
end

-- The earlier answer to an Idempotency-Key: the ids, nil for none, or false when another request had this key.
local function remembered_as(memory, fingerprint)
  local answered = call('GET', memory)
  if not answered then return nil end
  local first, stored_fingerprint = string.match(answered, '^(%S+) (.*)$')
  return stored_fingerprint == fingerprint and first
end

local function with_head(head, tails)
  for i = 1, #tails do tails[i] = head .. tails[i] end
  return tails
end

-- Forget what `stage` stored.
local function unstage(list, tag, ids)
  call('ZREM', tag .. 'b', unpack(ids))
  call('HDEL', tag .. 't', unpack(ids))
  drained[list] = true
end

local function is_list(list)
  local kind = call('TYPE', list).ok
  return kind == 'none' or kind == 'list'
end

local function length(list, tag)
  local n = call('ZCARD', tag .. 'd') + call('LLEN', list)
  for p = 1, 9 do n = n + call('LLEN', tag .. p) end
  for _, stale in ipairs(call('HMGET', tag .. 'n', 's0', 's1', 's2', 's3', 's4', 's5', 's6', 's7', 's8', 's9')) do
    n = n - (tonumber(stale) or 0)
  end
  return n
end

-- The reply for a task that was stored under an id with this call's head.
local STORED = {0, STAMP}

-- One push with options. The replies are those of `push.lua`.
local function push_one(list, tag, id, payload, opts, rules)
  local memory = opts.ik and tag .. 'i:push:' .. opts.ik
  local first = memory and remembered_as(memory, opts.ih)
  if first then
    local id = string.match(first, '^(.*)%+$')
    return id and {0, id, 3} or {0, first, 2}
  end
  if first == false then return {5} end
  if not is_list(list) then return {6, 'WRONGTYPE'} end
  if rules.ttl and not opts.x then opts.x = in_ms(rules.ttl) end
  local refused = expires_first(opts)
  if refused then return refused end
  if opts.k then
    local other = call('HGET', tag .. 'k', opts.k)
    local task = other and load_task(tag, other)
    if task and not (task.x and task.x <= now and (task.s == 'r' or task.s == 'd')) then
      if opts.w and not (task.w and (task.r or 0) >= (opts.r or 0)) then
        task.w, task.r = true, math.max(task.r or 0, opts.r or 0)
        save_task(tag, other, task)
      end
      -- The task is stored already, so a full Redis does not make this push fail.
      if memory then redis.pcall('SET', memory, other .. '+ ' .. opts.ih, 'PX', DAY) end
      return {0, other, 1}
    end
  end
  -- Checked last, so that a repeated request gets its earlier answer from a full queue too.
  if rules.max_length and length(list, tag) >= rules.max_length then return {9, rules.max_length} end
  enter(list, tag, id, payload, opts, memory and true)
  if memory then call('SET', memory, id .. ' ' .. opts.ih, 'PX', DAY) end
  return STORED
end
