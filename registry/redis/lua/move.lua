-- uses: base, life, finishing, heads, each
-- Move: tasks of one state go to the tail of another queue, order and ids kept, so many at a time.
-- KEYS: the list they leave. ARGV per entry: the list they join, state (ready delayed dead), moves at most, how many
--   were skipped before.
-- Reply per entry: {0, moved, skipped, 1 when there is more} · {6, text} the target is no list · {8, text}.
-- Of the tasks that somebody waits for: every daemon is told where they are now.
local moves = {}
-- Payloads are copied, with others waiting: a call that has moved so many bytes leaves the rest to the next one.
local MOST_BYTES, copied = 1048576, 0

local function carry(list, g, to, h, id, m)
  if m and m.k and m.s ~= 'x' then
    if call('HEXISTS', h .. 'k', m.k) == 1 then return false end
    free_key(g, id, m)
    call('HSET', h .. 'k', m.k, id)
  end
  local payload = call('HGET', g .. 't', id)
  copied = copied + #payload
  call('HSET', h .. 't', id, payload)
  if m then
    keep(h, id, m)
    -- A dead task has expired already, or never will.
    if m.x and m.s ~= 'x' then
      call('ZREM', g .. 'o', id)
      call('ZADD', h .. 'o', m.x, id)
    end
  end
  forget(list, g, id)
  if m and m.w then moves[#moves + 1] = list .. '\t' .. id .. '\t' .. to end
  return true
end

local function move_ready(list, g, to, h, most)
  local moved, skipped, left, kept = 0, 0, most, {}
  for p = 0, 9 do
    local from = p == 0 and list or g .. p
    local into = p == 0 and to or h .. p
    for _ = 1, math.min(left, call('LLEN', from)) do
      if copied >= MOST_BYTES then break end
      local e = call('RPOP', from)
      left = left - 1
      local id, generation = ours(e)
      if not id then
        copied = copied + #e
        call('LPUSH', into, e)
        moved = moved + 1
      else
        local m = known(g, id)
        if is_tombstone(g, id, generation, m) then
          lift_tombstone(g, p)
        elseif carry(list, g, to, h, id, m) then
          -- It is behind others now, and keeps since when it is ready.
          if m and m.rh then
            m.rh = nil
            keep(h, id, m)
          end
          call('LPUSH', into, e)
          moved = moved + 1
        else
          kept[#kept + 1] = {from, e}
          skipped = skipped + 1
        end
      end
    end
  end
  -- What could not go keeps its place at the head.
  for i = #kept, 1, -1 do call('RPUSH', kept[i][1], kept[i][2]) end
  return moved, skipped, left <= 0 or copied >= MOST_BYTES
end

local function move_set(list, g, to, h, kind, most, passed)
  local moved, skipped = 0, 0
  local pairs_ = call('ZRANGE', g .. kind, passed, passed + most - 1, 'WITHSCORES')
  for i = 1, #pairs_, 2 do
    if copied >= MOST_BYTES then return moved, skipped, true end
    local id, at = pairs_[i], pairs_[i + 1]
    if carry(list, g, to, h, id, known(g, id)) then
      call('ZREM', g .. kind, id)
      call('ZADD', h .. kind, at, id)
      due(to, tonumber(at))
      moved = moved + 1
    else
      skipped = skipped + 1
    end
  end
  return moved, skipped, #pairs_ >= 2 * most
end

local function move(list, to, state, most, passed)
  local g, h = '{' .. list .. '}', '{' .. to .. '}'
  most, passed = tonumber(most), tonumber(passed)
  local kind = call('TYPE', to).ok
  if kind ~= 'none' and kind ~= 'list' then return {6, 'WRONGTYPE'} end
  local moved, skipped, more
  if state == 'ready' then
    moved, skipped, more = move_ready(list, g, to, h, most)
  else
    moved, skipped, more = move_set(list, g, to, h, state == 'delayed' and 'd' or 'x', most, passed)
  end
  if moved > 0 then
    due(to, call('EXISTS', h .. 'o') == 1 and now or FAR)
    wake(to)
  end
  drained[list] = true
  return {0, moved, skipped, more and 1 or 0}
end

local replies = reply_each(move, 4)
if #moves > 0 then call('PUBLISH', SPACE .. 'moved', '-\n' .. table.concat(moves, '\n')) end
return finish(replies)
