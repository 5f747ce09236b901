-- uses: base, life
-- Done: kept with its result as long as the push, or the queue's retention, asks for it; else forgotten at once.
local function forget(list, g, id)
  call('HDEL', g .. 't', id)
  call('HDEL', g .. 'm', id)
  drained[list] = true
end

local function make_done(list, g, id, m, result, handed_over)
  free_key(g, id, m)
  slot_freed(list, g)
  local retention = policy_of(g).retention or {}
  local stay = (m.r or 0)
  if not handed_over then stay = math.max(stay, (retention.done or 3600) * 1000) end
  if m.i then stay = math.max(stay, DAY) end
  if m.k and stay == 0 then stay = (retention.done or 3600) * 1000 end
  local lease = m.o and m.o.i
  remember(m, 'done')
  m.s, m.v, m.z, m.ll = 'e', result or nil, now, lease
  tell_ended(list, id, m)
  if stay == 0 then return forget(list, g, id) end
  keep(g, id, m)
  call('ZADD', g .. 'e', now + stay, id)
  due(list, now + stay)
  -- Beyond the queue's limit the oldest go, two for each that comes; those that a push asked to keep stay, and are passed over.
  if not (m.r or m.i) then
    local over = call('ZCARD', g .. 'e') - (retention.done_max or 1000)
    if over > 0 then
      local goes = math.min(over, 2)
      for _, old in ipairs(call('ZRANGE', g .. 'e', 0, 19)) do
        local o = known(g, old)
        if not (o and (o.r or o.i)) then
          call('ZREM', g .. 'e', old)
          forget(list, g, old)
          goes = goes - 1
          if goes == 0 then break end
        end
      end
    end
  end
end
