-- uses: base, life, each
-- Extend: the holder is alive and needs more time; the queue's max_run bounds the whole.
-- KEYS: the list of each entry. ARGV per entry: lease id, length ms from now (0: as long as it was given for last), ''
--   or ExtendOptions.
-- Reply per entry: {0, length ms, cancel} · {1} the lease is lost · {8, text}; of the first entries only, where much is
--   known of their tasks.
local function extend(list, lease, length, packed)
  local g = '{' .. list .. '}'
  if not is_held(g, lease) then return {1} end
  length = tonumber(length)
  local id = string.match(lease, '^[^-]*')
  local m = known(g, id)
  if not m or not m.o then return {1} end
  local rules = policy_of(g)
  local changed = length ~= 0 and length ~= m.o.l
  if changed then m.o.l = length end
  -- A lease that an older daemon gave does not say for how long.
  if length == 0 then length = m.o.l or m.l or lease_of(rules) end
  if rules.max_run then
    -- Not past the bound, but what the pop granted beyond it is not taken away.
    local granted = tonumber(call('ZSCORE', g .. 'l', lease))
    length = math.min(length, math.max(granted, m.o.f + in_ms(rules.max_run)) - now)
  end
  -- Taken out first: a full Redis lets a script that began by freeing go on.
  call('ZREM', g .. 'l', lease)
  call('ZADD', g .. 'l', now + length, lease)
  if m.o.m then call('PEXPIRE', m.o.m, math.max(length, call('PTTL', m.o.m))) end
  if packed ~= '' then
    local o = cmsgpack.unpack(packed)
    m.pr, m.pm = o.p or m.pr, o.m or m.pm
    changed = true
  end
  if changed then keep(g, id, m) end
  due(list, now + length)
  return {0, length, m.c and 1 or 0}
end

return finish(reply_each(extend, 3, false, has_read_enough))
