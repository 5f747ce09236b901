-- uses: base, life
-- Storing one task with what its push said about it; and how many a queue holds.

-- What the ids of this call's tasks begin with: Redis's time in ms and µs. With a tail of ten digits, which rises with
-- each push of a daemon, they are in the order of the pushes, whichever daemons they came through: where moments tie,
-- the id decides.
local STAMP = string.format('%011x%03x', now, clock[2] % 1000)

-- Without `payload` it is stored already.
local function enter(list, g, id, payload, o, remembered)
  local m = {p = o.p, n = o.n, b = o.b, l = o.l, k = o.k, r = o.r, tp = o.tp, w = o.w, x = o.x and now + o.x}
  m.i = remembered or nil
  if payload then call('HSET', g .. 't', id, payload) end
  if o.k then call('HSET', g .. 'k', o.k, id) end
  if m.x then call('ZADD', g .. 'o', m.x, id) end
  local at = o.at or (o.d and now + o.d)
  if at and at > now then make_delayed(list, g, id, m, at) else make_ready(list, g, id, m, false, true) end
end

-- The refusal of a push whose task, by its own ttl or the queue's, would expire before it is due: nobody could ever get
-- it.
local function expires_first(o)
  local wait = o.d or (o.at and o.at - now)
  return o.x and wait and wait >= o.x and {12, o.x, wait}
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
local function unstage(list, g, ids)
  call('ZREM', g .. 'b', unpack(ids))
  call('HDEL', g .. 't', unpack(ids))
  drained[list] = true
end

local function is_list(list)
  local kind = call('TYPE', list).ok
  return kind == 'none' or kind == 'list'
end

local function length(list, g)
  local n = call('ZCARD', g .. 'd') + call('LLEN', list)
  for p = 1, 9 do n = n + call('LLEN', g .. p) end
  for _, stale in ipairs(call('HMGET', g .. 'n', 's0', 's1', 's2', 's3', 's4', 's5', 's6', 's7', 's8', 's9')) do
    n = n - (tonumber(stale) or 0)
  end
  return n
end

-- A task was stored under an id with this call's head.
local STORED = {0, STAMP}

-- One push that says something about its task. The replies are those of `push.lua`.
local function push_one(list, g, id, payload, o, rules)
  local memory = o.ik and g .. 'i:push:' .. o.ik
  local first = memory and remembered_as(memory, o.ih)
  if first then
    local id = string.match(first, '^(.*)%+$')
    return id and {0, id, 3} or {0, first, 2}
  end
  if first == false then return {5} end
  if not is_list(list) then return {6, 'WRONGTYPE'} end
  if rules.ttl and not o.x then o.x = in_ms(rules.ttl) end
  local refused = expires_first(o)
  if refused then return refused end
  if o.k then
    local other = call('HGET', g .. 'k', o.k)
    local m = other and known(g, other)
    if m and not (m.x and m.x <= now and (m.s == 'r' or m.s == 'd')) then
      if o.w and not (m.w and (m.r or 0) >= (o.r or 0)) then
        m.w, m.r = true, math.max(m.r or 0, o.r or 0)
        keep(g, other, m)
      end
      -- A full Redis need not refuse what it has already.
      if memory then redis.pcall('SET', memory, other .. '+ ' .. o.ih, 'PX', DAY) end
      return {0, other, 1}
    end
  end
  -- What was answered before is answered again in a full queue too.
  if rules.max_length and length(list, g) >= rules.max_length then return {9, rules.max_length} end
  enter(list, g, id, payload, o, memory and true)
  if memory then call('SET', memory, id .. ' ' .. o.ih, 'PX', DAY) end
  return STORED
end
