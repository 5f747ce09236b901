-- uses: base, life, each
-- Retry: a dead task is ready again, with as many attempts more as it was granted at first.
-- KEYS: the list of each entry. ARGV per entry: task id, '1' to change nothing and only tell, 'd' and the ms after
--   which it is ready, or ''.
-- Reply per entry: {0, its key or ''} · {1} not dead · {10} its key is taken · {11} it is not JSON · {8, text}; of the
--   first entries only, where much is known of their tasks.
local function retry(list, id, how)
  local g = '{' .. list .. '}'
  must_be_list(list)
  local m = known(g, id)
  if not m or m.s ~= 'x' then return {1} end
  if m.y == 'not_json' then return {11} end
  if m.k then
    local other = call('HGET', g .. 'k', m.k)
    if other and other ~= id then return {10} end
  end
  if how == '1' then return {0, m.k or ''} end
  call('ZREM', g .. 'x', id)
  if m.k then call('HSET', g .. 'k', m.k, id) end
  m.nn = m.nn or m.n or policy_of(g).attempts or 25
  m.n = (m.a or 0) + m.nn
  -- The lease it was lost by may still acknowledge it, as long as nobody else has it.
  m.x, m.c, m.q, m.y, m.z = nil, nil, nil, nil, nil
  local wait = tonumber(string.match(how, '^d(%d+)$')) or 0
  if wait > 0 then make_delayed(list, g, id, m, now + wait) else make_ready(list, g, id, m, false) end
  return {0, m.k or ''}
end

return finish(reply_each(retry, 2, false, has_read_enough))
