-- uses: base, life, stale
-- Tombstones at the heads of the ready lists.
local function is_tombstone(tag, id, generation, task)
  return is_stale(task, generation) or call('HEXISTS', tag .. 't', id) == 0
end

-- Remove tombstones from the head of a ready list, `limit` of them at most. Returns how many were removed.
local function clear_head(list, tag, p, limit)
  local from = ready_list(list, tag, p)
  for gone = 0, limit - 1 do
    local e = call('LINDEX', from, -1)
    local id, generation
    if e then id, generation = parse_element(e) end
    if not id or not is_tombstone(tag, id, generation, load_task(tag, id)) then return gone end
    call('RPOP', from)
    lift_tombstone(tag, p)
  end
  return limit
end
