-- uses: base, life
-- Whether a ready element is a tombstone: its task is gone, in another state, or ready under a later generation.
local function is_stale(g, id, generation, m)
  return call('HEXISTS', g .. 't', id) == 0 or (m ~= nil and (m.s ~= 'r' or (m.g or 0) ~= generation))
end

-- Tombstones at the head of a ready list go, so many at most; how many went.
local function clear_head(list, g, p, most)
  local from = ready_list(list, g, p)
  for gone = 0, most - 1 do
    local e = call('LINDEX', from, -1)
    local id, generation
    if e then id, generation = ours(e) end
    if not id or not is_stale(g, id, generation, known(g, id)) then return gone end
    call('RPOP', from)
    lift_tombstone(g, p)
  end
  return most
end
