-- uses: base, life, history, each
-- Release: the holder gives the task back, the attempt not counted; to the head, or after a delay.
-- KEYS: the list of each entry. ARGV per entry: lease id, delay ms. Reply per entry: {0} · {1} the lease is lost · {8,
--   text}.
local function release(list, lease, wait)
  local g = '{' .. list .. '}'
  must_be_list(list)
  if not is_held(g, lease) then return {1} end
  wait = tonumber(wait)
  call('ZREM', g .. 'l', lease)
  local id = string.match(lease, '^[^-]*')
  local m = known(g, id) or {a = 1}
  remember(m, 'released')
  m.a, m.ll = math.max(0, m.a - 1), nil
  if m.c then
    bury(list, g, id, m, 'cancelled')
  elseif wait > 0 then
    make_delayed(list, g, id, m, now + wait)
  else
    make_ready(list, g, id, m, true)
  end
  return {0}
end

return finish(reply_each(release, 2, true))
