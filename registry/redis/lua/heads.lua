-- uses: base, life, stale
-- Tombstones at the heads of the ready lists.
local function is_tombstone(g, id, generation, m)
  return is_stale(m, generation) or call('HEXISTS', g .. 't', id) == 0
end

-- Tombstones at the head of a ready list go, so many at most; how many went.
local function clear_head(list, g, p, most)
  local from = ready_list(list, g, p)
  for gone = 0, most - 1 do
    local e = call('LINDEX', from, -1)
    local id, generation
    if e then id, generation = ours(e) end
    if not id or not is_tombstone(g, id, generation, known(g, id)) then return gone end
    call('RPOP', from)
    lift_tombstone(g, p)
  end
  return most
end
