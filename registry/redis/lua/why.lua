-- uses: base, life, limits, stale, reading
-- Why: what keeps a task from being handed out: the rules of its queue that let no task start now, and the ready tasks
-- that go before it. Reads one piece of its list per call. Reads only.
-- KEYS: the list. ARGV after the common three: task id, the place from the head to begin at, elements at most.
-- Reply: {0, {gates that are shut: paused, concurrency_limited, rate_limited}, tasks of higher priorities, tasks before
--   it in this piece, elements read, 1 when it was met} · {6|8, text}. For a task that is not ready the last four
--   are 0.
local MAX_BYTES = 262144

local function shut_gates(tag)
  local q, shut = {tag = tag, rules = policy_of(tag)}, {}
  local gate = closed_gate(q, 1)
  while gate do
    shut[#shut + 1] = GATES[gate]
    gate = closed_gate(q, gate + 1)
  end
  return shut
end

local function tombstones(tag, p) return tonumber(call('HGET', tag .. 'n', 's' .. p) or 0) end

local function higher(tag, priority)
  local count = 0
  for p = priority + 1, 9 do count = count + call('LLEN', tag .. p) - tombstones(tag, p) end
  return math.max(0, count)
end

local function before(list, tag, id, task, offset, limit)
  local p, mine, count, bytes, met = task.p or 0, element(id, task), 0, 0, 0
  -- Without tombstones every element is a task.
  local some_stale = tombstones(tag, p) > 0
  local read = each_from(ready_list(list, tag, p), offset, limit, function(e)
    if e == mine then
      met = 1
      return true
    end
    local other, generation = parse_element(e)
    local alive = true
    bytes = bytes + #e
    if other and some_stale then
      local encoded = call('HGET', tag .. 'm', other)
      if encoded then bytes = bytes + #encoded end
      alive = call('HEXISTS', tag .. 't', other) == 1
        and not is_stale(encoded and cmsgpack.unpack(encoded), generation)
    end
    if alive then count = count + 1 end
    return bytes >= MAX_BYTES
  end)
  return count, read, met
end

local function why(list, id, offset, limit)
  local tag = '{' .. list .. '}'
  local gates = shut_gates(tag)
  local task = load_task(tag, id) or {s = 'r'}
  if task.s ~= 'r' or call('HEXISTS', tag .. 't', id) == 0 then return {0, gates, 0, 0, 0, 0} end
  return {0, gates, higher(tag, task.p or 0), before(list, tag, id, task, offset, limit)}
end

return reply_of(why, KEYS[1], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]))
