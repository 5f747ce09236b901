-- uses: base, life, heads, each
-- Counts: what each queue holds, with a few commands per queue, however much it holds. Reads only.
-- KEYS: the list of each entry. No ARGV beyond the common three.
-- Reply per entry: {0, ready, delayed, leased, dead, done, since when the oldest ready task is ready (ms) or false,
--   policy or false} · {6|8, text}. That is false too where a raw element is the oldest.

-- The first element of a list that is not a tombstone, from place `at` behind its head on: its place, since when it is
-- ready (false for a raw element), and whether it was put to the head. Returns nothing behind the last element. After
-- MAX_STALE tombstones the next element counts, whatever it is.
local MAX_STALE = 100
local function first_alive(tag, from, at)
  for n = at, at + MAX_STALE do
    local e = call('LINDEX', from, -n)
    if not e then return end
    local id, generation = parse_element(e)
    if not id then return n, false, false end
    local task = load_task(tag, id)
    if n == at + MAX_STALE or not is_tombstone(tag, id, generation, task) then
      return n, task and task.rs or tonumber(string.sub(id, 1, 11), 16), task ~= nil and task.rh == true
    end
  end
end

-- Since when the oldest task of a list is ready. Elements pushed to the tail are in the order in which they became
-- ready. In front of them are those put to the head, the latest first. So the oldest is either the last of those at the
-- head, or the first behind them: this border is found with doubling steps, and then by bisection.
local function ready_since(tag, from)
  local at, since, at_head = first_alive(tag, from, 1)
  if not at_head then return since end
  local oldest, step, high, behind = since, 1, nil, nil
  while not high do
    local n, then_, still_head = first_alive(tag, from, at + step)
    if still_head then
      at, oldest, step = n, then_, 2 * step
    else
      high, behind = at + step, then_
    end
  end
  while high - at > 1 do
    local middle = math.floor((at + high) / 2)
    local n, then_, still_head = first_alive(tag, from, middle)
    if still_head and n < high then
      at, oldest = n, then_
    else
      high = middle
      if not still_head then behind = then_ end
    end
  end
  return behind and math.min(oldest, behind) or oldest
end

local function count(list)
  local tag = '{' .. list .. '}'
  local ready, oldest = 0, false
  for p = 9, 0, -1 do
    local from = p == 0 and list or tag .. p
    local n = call('LLEN', from)
    if n > 0 then
      ready = ready + n
      local since = ready_since(tag, from)
      if since then oldest = math.min(oldest or since, since) end
    end
  end
  if ready > 0 then
    for _, stale in ipairs(call('HMGET', tag .. 'n', 's0', 's1', 's2', 's3', 's4', 's5', 's6', 's7', 's8', 's9')) do
      ready = ready - (tonumber(stale) or 0)
    end
  end
  return {
    0, math.max(ready, 0), call('ZCARD', tag .. 'd'), call('ZCARD', tag .. 'l'), call('ZCARD', tag .. 'x'),
    call('ZCARD', tag .. 'e') + call('ZCARD', tag .. 'f'),
    ready > 0 and oldest, call('GET', tag .. 'c'),
  }
end

return reply_each(count, 0)
