-- uses: base, reading
-- Position: how many ready tasks of one priority go before a task, a piece at a time. Reads only.
-- KEYS: the list. ARGV after the common three: priority, the task's element, from which place of the head on, elements at most.
-- Reply: {0, tasks before it in this piece, elements read, 1 when it was met} · {6|8, text}.
local MOST_BYTES = 262144

local function count(list, p, mine, offset, most)
  local g, before, bytes, met = '{' .. list .. '}', 0, 0, 0
  local from = p == 0 and list or g .. p
  -- Where nothing was cancelled every element is a task.
  local tombstones = call('HEXISTS', g .. 'n', 's' .. p) == 1
  local read = each_from(from, offset, most, function(e)
    if e == mine then
      met = 1
      return true
    end
    local id, generation = ours(e)
    local alive = true
    bytes = bytes + #e
    if id and tombstones then
      local packed = call('HGET', g .. 'm', id)
      if packed then
        local m = cmsgpack.unpack(packed)
        alive, bytes = m.s == 'r' and (m.g or 0) == generation, bytes + #packed
      end
      alive = alive and call('HEXISTS', g .. 't', id) == 1
    end
    if alive then before = before + 1 end
    return bytes >= MOST_BYTES
  end)
  return {0, before, read, met}
end

local ok, reply = pcall(count, KEYS[1], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]))
return ok and reply or refusal(reply)
