-- uses: base, life, each
-- Extend: the holder is alive and needs more time; the queue's max_run bounds the total.
-- KEYS: the list of each entry. ARGV per entry: lease id, length ms from now (0: the length it had last), ''
--   or ExtendOptions.
-- Reply per entry: {0, length ms, cancel} · {1} the lease is lost · {8, text}; of the first entries only, where the
--   tasks' records are large.
local function extend(list, lease, length, encoded)
  local tag = '{' .. list .. '}'
  if not is_held(tag, lease) then return {1} end
  length = tonumber(length)
  local id = string.match(lease, '^[^-]*')
  local task = load_task(tag, id)
  if not task or not task.o then return {1} end
  local rules = policy_of(tag)
  local changed = length ~= 0 and length ~= task.o.l
  if changed then task.o.l = length end
  -- A lease from an older daemon has no length of its own.
  if length == 0 then length = task.o.l or task.l or lease_of(rules) end
  if rules.max_run then
    -- Never past the bound, but time that the pop granted beyond it is not taken away.
    local granted = tonumber(call('ZSCORE', tag .. 'l', lease))
    length = math.min(length, math.max(granted, task.o.f + in_ms(rules.max_run)) - now)
  end
  -- Removed first: a full Redis lets a script continue that began by freeing memory.
  call('ZREM', tag .. 'l', lease)
  call('ZADD', tag .. 'l', now + length, lease)
  if task.o.m then call('PEXPIRE', task.o.m, math.max(length, call('PTTL', task.o.m))) end
  if encoded ~= '' then
    local opts = cmsgpack.unpack(encoded)
    task.pr, task.pm = opts.p or task.pr, opts.m or task.pm
    changed = true
  end
  if changed then save_task(tag, id, task) end
  due(list, now + length)
  return {0, length, task.c and 1 or 0}
end

return finish(reply_each(extend, 3, false, has_read_enough))
