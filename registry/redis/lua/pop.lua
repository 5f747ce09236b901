-- uses: base, life, take
-- Pop: the oldest ready task of the highest priority is handed out under a lease; a pop without lease holds a hidden one.
-- KEYS: the list of each entry.
-- ARGV per entry: nonce (the lease id is id-nonce), length of the lease in ms (0: the task's own), options ('' or msgpack: w worker, l leased).
-- Reply per entry: {0, id, payload, attempt, raw, lease ms, traceparent} · {1} nothing · {2} ask again · {3, code} paused or limited ·
--   {4} lease_required · {6|8, text} as everywhere.
if too_late() then return {'LATE', now} end

local replies, spent = {}, 0
for i = 1, #KEYS do
  local at = 1 + i * 3
  local options = ARGV[at + 2]
  if spent > 1048576 then
    replies[i] = {2}
  else
    local ok, reply = pcall(take, KEYS[i], ARGV[at], tonumber(ARGV[at + 1]), options ~= '' and cmsgpack.unpack(options) or nil)
    if ok and reply[1] == 0 then spent = spent + #reply[3] end
    replies[i] = ok and reply or refusal(reply)
  end
end
return finish(replies)
