-- uses: base, life, attempts, each
-- Fail: the attempt went wrong; again after the backoff or the given delay, or dead.
-- KEYS: the list of each entry. ARGV per entry: lease id, FailOptions.
-- Reply per entry: {0, 'ready' | 'delayed' | 'dead'} · {1} the lease is lost · {8, text}; of the first entries only,
--   where much is known of their tasks.
local function fail(list, lease, packed)
  local g = '{' .. list .. '}'
  must_be_list(list)
  if not is_held(g, lease) then return {1} end
  call('ZREM', g .. 'l', lease)
  local id = string.match(lease, '^[^-]*')
  local o = cmsgpack.unpack(packed)
  local m = known(g, id) or {a = 1}
  remember(m, 'failed', o.e)
  m.er, m.ll = o.e, nil
  if m.c or o.n or not attempts_left(g, m) then
    bury(list, g, id, m, m.c and 'cancelled' or 'failed', o.e)
    return {0, 'dead'}
  end
  local wait = o.d or backoff_ms(g, id, m)
  if wait > 0 then
    make_delayed(list, g, id, m, now + wait)
    return {0, 'delayed'}
  end
  make_ready(list, g, id, m, false)
  return {0, 'ready'}
end

return finish(reply_each(fail, 2, false, has_read_enough))
