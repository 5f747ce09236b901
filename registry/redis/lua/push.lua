-- uses: base, life, enter
-- Push: a new task becomes ready, or delayed.
-- KEYS: the list of each entry.
-- ARGV per entry: id, payload, options ('' or msgpack: p d at x n b l k r ik ih tp w, see `queue/options.py`).
-- Reply per entry: {0} stored · {0, id, 1} that key's task is there already · {0, id, 2} replayed ·
--   {5} Idempotency-Key of another request · {6, text} wrong type · {7, text} full · {8, text} refused · {9, n} max_length.
if too_late() then return {'LATE', now} end

local function with_options(list, g, id, payload, o, rules)
  local memory = o.ik and g .. 'i:push:' .. o.ik
  local first = memory and remembered_as(memory, o.ih)
  if first then return {0, first, 2} end
  if first == false then return {5} end
  if not is_list(list) then return {6, 'WRONGTYPE'} end
  if o.k then
    local other = call('HGET', g .. 'k', o.k)
    local m = other and known(g, other)
    if m and not (m.x and m.x <= now and (m.s == 'r' or m.s == 'd')) then
      if o.w and not m.w then
        m.w, m.r = true, m.r or o.r
        keep(g, other, m)
      end
      return {0, other, 1}
    end
  end
  -- What was answered before is answered again in a full queue too.
  if rules.max_length and length(list, g) >= rules.max_length then return {9, rules.max_length} end
  if rules.ttl and not o.x then o.x = rules.ttl * 1000 end
  enter(list, g, id, payload, o, memory and true)
  if memory then call('SET', memory, id .. ' ' .. o.ih, 'PX', DAY) end
  return {0}
end

local has_policy = {}
local function push(list, id, payload, options)
  local g = '{' .. list .. '}'
  local packed, rules = has_policy[list], {}
  if packed == nil then
    packed = call('GET', g .. 'c')
    has_policy[list] = packed
  end
  if packed then rules = cmsgpack.unpack(packed) end
  if options ~= '' or rules.ttl then
    return with_options(list, g, id, payload, options ~= '' and cmsgpack.unpack(options) or {}, rules)
  end
  if rules.max_length and length(list, g) >= rules.max_length then return {9, rules.max_length} end
  local n = call('LPUSH', list, '\1' .. id)
  call('HSET', g .. 't', id, payload)
  -- Others' raw elements are not in the index: our first task behind them enters the queue. One look per queue and call.
  if n == 1 or (not is_woken[list] and call('HLEN', g .. 't') == 1) then due(list, FAR) end
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
