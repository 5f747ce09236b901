-- uses: base, life, finishing, heads, each
-- Purge: forget what is ready, in the order of delivery, and what is delayed, the next due first, so many at a time;
-- leases, the dead, the done and the policy stay.
-- KEYS: the list of each entry. ARGV per entry: moves at most, and behind a blank 'ready' or 'delayed' for one of both.
--   Reply per entry: {0, purged, 1 when there is more} · {8, text}.
local function drop(list, g, id)
  local m = known(g, id)
  if m then
    free_key(g, id, m)
    tell_ended(list, id, m)
    call('ZREM', g .. 'o', id)
  end
  forget(list, g, id)
end

local function purge(list, said)
  local most, state = string.match(said, '^(%d+) ?(%a*)$')
  most = tonumber(most)
  local g = '{' .. list .. '}'
  local count, left = 0, most
  for p = state == 'delayed' and -1 or 9, 0, -1 do
    local from = p == 0 and list or g .. p
    while left > 0 do
      local e = call('RPOP', from)
      if not e then break end
      left = left - 1
      local id, generation = ours(e)
      if id then
        local m = known(g, id)
        if is_tombstone(g, id, generation, m) then
          lift_tombstone(g, p)
        else
          drop(list, g, id)
          count = count + 1
        end
      else
        count = count + 1
      end
    end
  end
  for _, id in ipairs(state == 'ready' and {} or call('ZRANGE', g .. 'd', 0, left - 1)) do
    if left <= 0 then break end
    call('ZREM', g .. 'd', id)
    drop(list, g, id)
    count, left = count + 1, left - 1
  end
  drained[list] = true
  return {0, count, left <= 0 and 1 or 0}
end

return finish(reply_each(purge, 1))
