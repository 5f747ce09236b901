-- uses: base, life, finishing, heads, aside, each
-- Purge: delete the ready tasks in the order of delivery, then the delayed ones by due time, a limited number per call.
-- Leased, dead and done tasks and the policy stay.
-- KEYS: the list of each entry. ARGV per entry: 'N STATE PLACE': moves at most; 'ready' or 'delayed' for only one of
--   the two; where they are set aside. The last two may be missing.
-- Reply per entry: {0, purged, 1 when there is more[, bytes set aside]} · {2} its undo has begun · {6|7|8, text}.
local function purge_list(list, tag, p, limit, place)
  local from = ready_list(list, tag, p)
  local count, moves = 0, 0
  while moves < limit and not is_enough() do
    local e = call('LINDEX', from, -1)
    if not e then break end
    moves = moves + 1
    local id, generation = parse_element(e)
    local encoded = id and call('HGET', tag .. 'm', id)
    local task = unpack_task(encoded)
    local alive = not id or not is_tombstone(tag, id, generation, task)
    if alive and id then
      set_task_aside(tag, place, 'r', id, encoded)
    elseif alive then
      set_aside(tag, place, 'raw', '', e, p)
    end
    call('RPOP', from)
    if alive then count = count + 1 else lift_tombstone(tag, p) end
    if alive and id then drop(list, tag, id, task) end
  end
  return count, moves
end

local function purge(list, limit_and_filter)
  local limit, state, place = string.match(limit_and_filter, '^(%d+) ?(%a*) ?(.*)$')
  local tag = '{' .. list .. '}'
  local count, left, before = 0, tonumber(limit), aside_bytes
  if place ~= '' then
    if is_undone(tag, place) then return {2} end
    must_have_room()
  end
  for p = state == 'delayed' and -1 or 9, 0, -1 do
    local purged, moves = purge_list(list, tag, p, left, place)
    count, left = count + purged, left - moves
  end
  for _, id in ipairs((state == 'ready' or left <= 0) and {} or call('ZRANGE', tag .. 'd', 0, left - 1)) do
    if is_enough() then break end
    local encoded = call('HGET', tag .. 'm', id)
    set_task_aside(tag, place, 'd', id, encoded, call('ZSCORE', tag .. 'd', id))
    call('ZREM', tag .. 'd', id)
    drop(list, tag, id, unpack_task(encoded))
    count, left = count + 1, left - 1
  end
  drained[list] = true
  return {0, count, (left <= 0 or is_enough()) and 1 or 0, place ~= '' and aside_bytes - before or nil}
end

return finish(reply_each(purge, 1))
