-- uses: base, life
-- Push: a new task becomes ready, or delayed.
-- KEYS: the list of each entry.
-- ARGV per entry: id, payload, options ('' or msgpack: p d at x n b l k r ik ih tp w, see `queue/options.py`).
-- Reply per entry: {0} stored · {0, id, 1} that key's task is there already · {0, id, 2} replayed ·
--   {5} Idempotency-Key of another request · {6, text} wrong type · {7, text} full · {8, text} refused · {9, n} max_length.
if too_late() then return {'LATE', now} end

local function with_options(list, g, id, payload, o)
  local memory = o.ik and g .. 'i:push:' .. o.ik
  local answered = memory and call('GET', memory)
  if answered then
    local first, print = string.match(answered, '^(%S+) (.*)$')
    if print ~= o.ih then return {5} end
    return {0, first, 2}
  end
  local kind = call('TYPE', list).ok
  if kind ~= 'none' and kind ~= 'list' then return {6, 'WRONGTYPE'} end
  if o.k then
    local other = call('HGET', g .. 'k', o.k)
    local m = other and known(g, other)
    if m and not (m.x and m.x <= now and (m.s == 'r' or m.s == 'd')) then
      if o.w and not m.w then m.w = true; m.r = m.r or o.r; keep(g, other, m) end
      return {0, other, 1}
    end
  end
  local m = {p = o.p, n = o.n, b = o.b, l = o.l, k = o.k, r = o.r, tp = o.tp, w = o.w, x = o.x and now + o.x}
  m.i = memory and true or nil
  call('HSET', g .. 't', id, payload)
  if o.k then call('HSET', g .. 'k', o.k, id) end
  if m.x then call('ZADD', g .. 'o', m.x, id) end
  local at = o.at or (o.d and now + o.d)
  if at and at > now then make_delayed(list, g, id, m, at) else make_ready(list, g, id, m, false) end
  if memory then call('SET', memory, id .. ' ' .. o.ih, 'PX', DAY) end
  return {0}
end

local function length(list, g)
  local n = call('ZCARD', g .. 'd') + call('LLEN', list)
  for p = 1, 9 do n = n + call('LLEN', g .. p) end
  for _, stale in ipairs(call('HMGET', g .. 'n', 's0', 's1', 's2', 's3', 's4', 's5', 's6', 's7', 's8', 's9')) do
    n = n - (tonumber(stale) or 0)
  end
  return n
end

local has_policy = {}
local function push(list, id, payload, options)
  local g = '{' .. list .. '}'
  local packed = has_policy[list]
  if packed == nil then
    packed = call('GET', g .. 'c')
    has_policy[list] = packed
  end
  if packed then
    local rules = cmsgpack.unpack(packed)
    if rules.max_length and length(list, g) >= rules.max_length then return {9, rules.max_length} end
    if rules.ttl and options == '' then options = cmsgpack.pack({x = rules.ttl * 1000}) end
  end
  if options ~= '' then return with_options(list, g, id, payload, cmsgpack.unpack(options)) end
  if call('LPUSH', list, '\1' .. id) == 1 then due(list, FAR) end
  call('HSET', g .. 't', id, payload)
  wake(list)
  return {0}
end

local replies = {}
for i = 1, #KEYS do
  local at = 1 + i * 3
  local ok, reply = pcall(push, KEYS[i], ARGV[at], ARGV[at + 1], ARGV[at + 2])
  replies[i] = ok and reply or refusal(reply)
end
return finish(replies)
