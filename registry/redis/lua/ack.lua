-- uses: base, life, finishing
-- Ack: the work is done. Repeating it within ten minutes is told the same.
-- KEYS: the list of each entry. ARGV per entry: lease id, result ('' for none).
-- Reply per entry: {0, 'done'} · {0, 'late'} the lease had run out, but nobody else has the task · {1} the lease is lost · {8, text}.
local TEN_MINUTES = 600000
local acked, traces = {}, {}

local function ack(list, lease, result)
  local g = '{' .. list .. '}'
  local id = string.match(lease, '^[^-]*')
  local status = 'done'
  local m
  if call('ZREM', g .. 'l', lease) == 1 then
    m = known(g, id) or {a = 1}
  else
    if acked[lease] or call('ZSCORE', g .. 'a', lease) then return {0, 'done'} end
    m = known(g, id)
    if not m or m.ll ~= lease or m.s == 'l' or m.s == 'e' or m.y == 'cancelled' then return {1} end
    if m.s == 'r' then leave_tombstone(list, g, m) end
    if m.s == 'd' then call('ZREM', g .. 'd', id) end
    if m.s == 'x' then call('ZREM', g .. 'x', id) end
    m.y, status = nil, 'late'
  end
  local known_traces = traces[list] or {}
  known_traces[#known_traces + 1], known_traces[#known_traces + 2] = now + TEN_MINUTES, lease
  traces[list], acked[lease] = known_traces, true
  due(list, now + TEN_MINUTES)
  make_done(list, g, id, m, result ~= '' and result, false)
  return {0, status}
end

local replies = {}
for i = 1, #KEYS do
  local ok, reply = pcall(ack, KEYS[i], ARGV[2 + i * 2], ARGV[3 + i * 2])
  replies[i] = ok and reply or refusal(reply)
end
for list, pairs_ in pairs(traces) do call('ZADD', '{' .. list .. '}a', unpack(pairs_)) end
return finish(replies)
