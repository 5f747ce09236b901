-- uses: base, life, take, replay
-- Pop: the oldest ready task of the highest priority is handed out under a lease; a pop without lease holds a hidden one.
-- KEYS: the list of each entry.
-- ARGV per entry: nonce (the lease id is id-nonce), length of the lease in ms (0: the task's own), options ('' or msgpack:
--   l leased, w worker, n a new poll of that worker, ik ih Idempotency-Key, k the answer it is remembered by).
-- Reply per entry: {0, id, payload, attempt, raw, lease ms, traceparent} · {0, …, 1 replayed, list, nonce} ·
--   {1} nothing · {2} ask again · {3, code} paused or limited · {4} lease_required · {5} another request's key · {6|8, text}.
if too_late() then return {'LATE', now} end

local function pop(list, nonce, lease_ms, packed)
  if packed == '' then return take(list, nonce, lease_ms) end
  local o = cmsgpack.unpack(packed)
  if o.n then call('PUBLISH', SPACE .. 'worker', PROCESS .. '\n' .. o.n .. '\n' .. o.w) end
  local memory = o.ik and '{' .. list .. '}i:pop:' .. o.ik
  o.mk = memory
  local held = memory and replay(memory, o.ih, o.k)
  if held then return held[1] end
  if held == false then return {5} end
  local reply = take(list, nonce, lease_ms, o)
  if memory and reply[1] == 0 then
    remember_pop(memory, o.ih, {{0, reply[2], 0, 0, 0, reply[6], 0, 0, list, nonce}})
  end
  return reply
end

local MOST_BYTES, AT_ONCE = 1048576, 16
local replies, spent, plain = {}, 0, {}
for i = 1, #KEYS do
  if ARGV[3 + i * 3] == '' and ARGV[2 + i * 3] ~= '0' then
    local others = plain[KEYS[i]]
    if others then others[#others + 1] = i else plain[KEYS[i]] = {i} end
  end
end

-- Several plain pops of a queue of which nothing is known beyond its payloads: a few commands for all of them. What is not
-- as simple as that is left to `take`. Nothing may go wrong between LTRIM and ZADD: Redis would not bring the tasks back.
local function take_plain(list, entries)
  local q = learnt[list] or learn(list, '{' .. list .. '}')
  local at = 1
  while at <= #entries and not q.metas and spent <= MOST_BYTES do
    local elements = call('LRANGE', list, -math.min(AT_ONCE, #entries - at + 1), -1)
    if #elements == 0 then
      for j = at, #entries do replies[entries[j]] = {1} end
      return
    end
    local ids, given, leases = {}, {}, {}
    for j = #elements, 1, -1 do
      local id = ours(elements[j])
      if not id then break end
      ids[#ids + 1] = id
    end
    local payloads = #ids > 0 and call('HMGET', q.g .. 't', unpack(ids)) or {}
    for j, id in ipairs(ids) do
      if not payloads[j] or spent > MOST_BYTES then break end
      local entry = entries[at + j - 1]
      local length = tonumber(ARGV[2 + entry * 3])
      leases[2 * j - 1], leases[2 * j] = now + length, id .. '-' .. ARGV[1 + entry * 3]
      given[j] = {0, id, payloads[j], 1, 0, length, false}
      spent = spent + #payloads[j]
    end
    if #given == 0 then return end
    call('LTRIM', list, 0, -#given - 1)
    call('ZADD', q.g .. 'l', unpack(leases))
    due(list, tonumber(leases[1]))
    for j, reply in ipairs(given) do replies[entries[at + j - 1]] = reply end
    at = at + #given
  end
end

for list, entries in pairs(plain) do
  if #entries > 1 then pcall(take_plain, list, entries) end
end
for i = 1, #KEYS do
  local at = 1 + i * 3
  if not replies[i] and spent > MOST_BYTES then replies[i] = {2} end
  if not replies[i] then
    local ok, reply = pcall(pop, KEYS[i], ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2])
    if ok and reply[1] == 0 then spent = spent + #reply[3] end
    replies[i] = ok and reply or refusal(reply)
  end
end
return finish(replies)
