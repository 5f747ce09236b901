-- uses: base, life, finishing
-- Confirm: the answer to a pop without lease has been written; its hidden lease ends and the task is done.
-- KEYS: the list of each entry. ARGV per entry: lease id. Reply per entry: {0} · {1} the lease was gone.
local function confirm(list, lease)
  local g = '{' .. list .. '}'
  if call('ZREM', g .. 'l', lease) == 0 then return {1} end
  local id = string.match(lease, '^[^-]*')
  local m = known(g, id)
  if m and m.s == 'x' then
    call('ZREM', g .. 'x', id)
    lift_tombstone(g, m.p)
  end
  if not m then
    call('HDEL', g .. 't', id)
    drained[list] = true
  else
    make_done(list, g, id, m, false, true)
  end
  return {0}
end

local replies = {}
for i = 1, #KEYS do
  local ok, reply = pcall(confirm, KEYS[i], ARGV[3 + i])
  replies[i] = ok and reply or refusal(reply)
end
return finish(replies)
