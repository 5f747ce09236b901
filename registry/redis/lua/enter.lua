-- uses: base, life
-- Storing one task with what its push said about it; and how many a queue holds.
local function enter(list, g, id, payload, o, remembered)
  local m = {p = o.p, n = o.n, b = o.b, l = o.l, k = o.k, r = o.r, tp = o.tp, w = o.w, x = o.x and now + o.x}
  m.i = remembered or nil
  call('HSET', g .. 't', id, payload)
  if o.k then call('HSET', g .. 'k', o.k, id) end
  if m.x then call('ZADD', g .. 'o', m.x, id) end
  local at = o.at or (o.d and now + o.d)
  if at and at > now then make_delayed(list, g, id, m, at) else make_ready(list, g, id, m, false) end
end

-- The refusal of a push whose task, by its own ttl or the queue's, would expire before it is due: nobody could ever get it.
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
