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

local replies, spent = {}, 0
for i = 1, #KEYS do
  local at = 1 + i * 3
  if spent > 1048576 then
    replies[i] = {2}
  else
    local ok, reply = pcall(pop, KEYS[i], ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2])
    if ok and reply[1] == 0 then spent = spent + #reply[3] end
    replies[i] = ok and reply or refusal(reply)
  end
end
return finish(replies)
