-- uses: base, life, finishing
-- Confirm: the answer to a pop without lease has been written; its hidden lease ends and the task is done.
-- KEYS: the list of each entry. ARGV per entry: lease id. Reply per entry: {0} · {1} the lease was gone.
local replies, held = {}, {}

-- The done tasks of one queue, plain ones together.
local function end_all(list)
  local group = held[list]
  if not group then return end
  held[list] = nil
  local g = '{' .. list .. '}'
  local known_of, plain = call('HMGET', g .. 'm', unpack(group)), {}
  for i, id in ipairs(group) do
    local m = known_of[i] and cmsgpack.unpack(known_of[i])
    if not m then
      plain[#plain + 1] = id
    else
      if m.s == 'x' then
        call('ZREM', g .. 'x', id)
        lift_tombstone(g, m.p)
      end
      make_done(list, g, id, m, false, true)
    end
  end
  if #plain > 0 then
    call('HDEL', g .. 't', unpack(plain))
    drained[list] = true
  end
end

for i = 1, #KEYS do
  local list, lease = KEYS[i], ARGV[3 + i]
  local ok, n = pcall(call, 'ZREM', '{' .. list .. '}l', lease)
  replies[i] = ok and {1 - n} or refusal(n)
  if ok and n == 1 then
    local group = held[list] or {}
    group[#group + 1] = string.match(lease, '^[^-]*')
    held[list] = group
  end
end
for i, list in ipairs(KEYS) do
  local ok, e = pcall(end_all, list)
  if not ok then replies[i] = refusal(e) end
end
return finish(replies)
