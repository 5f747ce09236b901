-- uses: base
-- Counts: what each queue holds, in O(1) a queue. Reads only.
-- KEYS: the list of each entry. No ARGV beyond the common three.
-- Reply per entry: {0, ready, delayed, leased, dead, done, head or false, policy or false}, head: the oldest element of the fullest
--   priority with any · {6|8, text}.
local function count(list)
  local g = '{' .. list .. '}'
  local ready, head = 0, false
  for p = 9, 0, -1 do
    local from = p == 0 and list or g .. p
    local n = call('LLEN', from)
    if n > 0 then
      ready = ready + n
      local first = call('LINDEX', from, -1)
      -- Ids begin with their time: the smallest is the oldest. A raw element has no time.
      if string.byte(first) ~= 1 then head = head or ''
      elseif not head or head == '' or first < head then head = first end
    end
  end
  if ready > 0 then
    for _, stale in ipairs(call('HMGET', g .. 'n', 's0', 's1', 's2', 's3', 's4', 's5', 's6', 's7', 's8', 's9')) do
      ready = ready - (tonumber(stale) or 0)
    end
  end
  return {
    0, math.max(ready, 0), call('ZCARD', g .. 'd'), call('ZCARD', g .. 'l'), call('ZCARD', g .. 'x'),
    call('ZCARD', g .. 'e') + call('ZCARD', g .. 'f'),
    head, call('GET', g .. 'c'),
  }
end

local replies = {}
for i = 1, #KEYS do
  local ok, reply = pcall(count, KEYS[i])
  replies[i] = ok and reply or refusal(reply)
end
return replies
