-- uses: base, life
-- Storing one task with what its push said about it; and how many a queue holds.

-- What the ids of this call's tasks begin with: Redis's time in ms and µs. With a tail of ten digits, which rises with
-- each push of a daemon, they are in the order of the pushes, whichever daemons they came through: where moments tie,
-- the id decides.
local STAMP = string.format('%011x%03x', now, clock[2] % 1000)

-- Without `payload` it is stored already.
local function enter(list, tag, id, payload, opts, remembered)
  local task = {
    p = opts.p, n = opts.n, b = opts.b, l = opts.l, k = opts.k, r = opts.r, tp = opts.tp, w = opts.w,
    x = opts.x and now + opts.x,
  }
  task.i = remembered or nil
  if payload then call('HSET', tag .. 't', id, payload) end
  if opts.k then call('HSET', tag .. 'k', opts.k, id) end
  if task.x then call('ZADD', tag .. 'o', task.x, id) end
  local at = opts.at or (opts.d and now + opts.d)
  if at and at > now then make_delayed(list, tag, id, task, at) else make_ready(list, tag, id, task, false, true) end
end

-- The refusal of a push whose task, by its own ttl or the queue's, would expire before it is due: nobody could ever get
-- it.
local function expires_first(opts)
  local wait = opts.d or (opts.at and opts.at - now)
  return opts.x and wait and wait >= opts.x and {12, opts.x, wait}
end

-- What an Idempotency-Key was answered before: nil for nothing, else the ids, or false for another request.
local function remembered_as(memory, print)
  local answered = call('GET', memory)
  if not answered then return nil end
  local first, known_print = string.match(answered, '^(%S+) (.*)$')
  return known_print == print and first
end

local function with_head(head, tails)
  for i = 1, #tails do tails[i] = head .. tails[i] end
  return tails
end

-- What `stage` stored is forgotten.
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

-- A task was stored under an id with this call's head.
local STORED = {0, STAMP}

-- One push that says something about its task. The replies are those of `push.lua`.
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
    local task = other and known(tag, other)
    if task and not (task.x and task.x <= now and (task.s == 'r' or task.s == 'd')) then
      if opts.w and not (task.w and (task.r or 0) >= (opts.r or 0)) then
        task.w, task.r = true, math.max(task.r or 0, opts.r or 0)
        keep(tag, other, task)
      end
      -- A full Redis need not refuse what it has already.
      if memory then redis.pcall('SET', memory, other .. '+ ' .. opts.ih, 'PX', DAY) end
      return {0, other, 1}
    end
  end
  -- What was answered before is answered again in a full queue too.
  if rules.max_length and length(list, tag) >= rules.max_length then return {9, rules.max_length} end
  enter(list, tag, id, payload, opts, memory and true)
  if memory then call('SET', memory, id .. ' ' .. opts.ih, 'PX', DAY) end
  return STORED
end
