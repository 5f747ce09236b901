-- uses: base, life, finishing, heads, each
-- Purge: forget the ready tasks, in the order of delivery, and the delayed ones, the next due first, a limited number
-- per call; leases, the dead, the done and the policy stay.
-- KEYS: the list of each entry. ARGV per entry: moves at most, and after a space 'ready' or 'delayed' for only one of
--   both.
--   Reply per entry: {0, purged, 1 when there is more} · {8, text}.
local function purge(list, said)
  local most, state = string.match(said, '^(%d+) ?(%a*)$')
  most = tonumber(most)
  local tag = '{' .. list .. '}'
  local count, left = 0, most
  for p = state == 'delayed' and -1 or 9, 0, -1 do
    local from = p == 0 and list or tag .. p
    while left > 0 do
      local e = call('RPOP', from)
      if not e then break end
      left = left - 1
      local id, generation = parse_element(e)
      if id then
        local task = known(tag, id)
        if is_tombstone(tag, id, generation, task) then
          lift_tombstone(tag, p)
        else
          drop(list, tag, id, task)
          count = count + 1
        end
      else
        count = count + 1
      end
    end
  end
  for _, id in ipairs(state == 'ready' and {} or call('ZRANGE', tag .. 'd', 0, left - 1)) do
    if left <= 0 then break end
    call('ZREM', tag .. 'd', id)
    drop(list, tag, id, known(tag, id))
    count, left = count + 1, left - 1
  end
  drained[list] = true
  return {0, count, left <= 0 and 1 or 0}
end

return finish(reply_each(purge, 1))
