-- uses: base, life, finishing, heads, each
-- Move: move tasks of one state to the tail of another queue, a limited number per call. They keep order and ids.
-- KEYS: the list they leave. ARGV per entry: the list they join, state (ready delayed dead), moves at most, how many
--   were skipped before.
-- Reply per entry: {0, moved, skipped, 1 when there is more} · {6, text} the target is no list · {8, text}.
-- The moved tasks whose end a client waits for: every daemon is notified of their new queue.
local moves = {}
-- Copying payloads blocks Redis: a call that has copied this many bytes leaves the rest to the next one.
local MAX_BYTES, copied = 1048576, 0

local function move_task(list, tag, to, target_tag, id, task)
  if task and task.k and task.s ~= 'x' then
    if call('HEXISTS', target_tag .. 'k', task.k) == 1 then return false end
    free_key(tag, id, task)
    call('HSET', target_tag .. 'k', task.k, id)
  end
  local payload = call('HGET', tag .. 't', id)
  copied = copied + #payload
  call('HSET', target_tag .. 't', id, payload)
  if task then
    save_task(target_tag, id, task)
    -- A dead task has expired already, or never will.
    if task.x and task.s ~= 'x' then
      call('ZREM', tag .. 'o', id)
      call('ZADD', target_tag .. 'o', task.x, id)
    end
  end
  forget(list, tag, id)
  if task and task.w then moves[#moves + 1] = list .. '\t' .. id .. '\t' .. to end
  return true
end

local function move_ready(list, tag, to, target_tag, limit)
  local moved, skipped, left, kept = 0, 0, limit, {}
  for p = 0, 9 do
    local from = p == 0 and list or tag .. p
    local into = p == 0 and to or target_tag .. p
    for _ = 1, math.min(left, call('LLEN', from)) do
      if copied >= MAX_BYTES then break end
      local e = call('RPOP', from)
      left = left - 1
      local id, generation = parse_element(e)
      if not id then
        copied = copied + #e
        call('LPUSH', into, e)
        moved = moved + 1
      else
        local task = load_task(tag, id)
        if is_tombstone(tag, id, generation, task) then
          lift_tombstone(tag, p)
        elseif move_task(list, tag, to, target_tag, id, task) then
          -- It is behind others now, so it is no longer at the head; `rs` stays as it is.
          if task and task.rh then
            task.rh = nil
            save_task(target_tag, id, task)
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
  -- Tasks that could not be moved keep their places at the head.
  for i = #kept, 1, -1 do call('RPUSH', kept[i][1], kept[i][2]) end
  return moved, skipped, left <= 0 or copied >= MAX_BYTES
end

local function move_set(list, tag, to, target_tag, kind, limit, skipped_before)
  local moved, skipped = 0, 0
  local pairs_ = call('ZRANGE', tag .. kind, skipped_before, skipped_before + limit - 1, 'WITHSCORES')
  for i = 1, #pairs_, 2 do
    if copied >= MAX_BYTES then return moved, skipped, true end
    local id, at = pairs_[i], pairs_[i + 1]
    if move_task(list, tag, to, target_tag, id, load_task(tag, id)) then
      call('ZREM', tag .. kind, id)
      call('ZADD', target_tag .. kind, at, id)
      due(to, tonumber(at))
      moved = moved + 1
    else
      skipped = skipped + 1
    end
  end
  return moved, skipped, #pairs_ >= 2 * limit
end

local function move(list, to, state, limit, skipped_before)
  local tag, target_tag = '{' .. list .. '}', '{' .. to .. '}'
  limit, skipped_before = tonumber(limit), tonumber(skipped_before)
  local kind = call('TYPE', to).ok
  if kind ~= 'none' and kind ~= 'list' then return {6, 'WRONGTYPE'} end
  local moved, skipped, more
  if state == 'ready' then
    moved, skipped, more = move_ready(list, tag, to, target_tag, limit)
  else
    moved, skipped, more = move_set(list, tag, to, target_tag, state == 'delayed' and 'd' or 'x', limit, skipped_before)
  end
  if moved > 0 then
    due(to, call('EXISTS', target_tag .. 'o') == 1 and now or FAR)
    wake(to)
  end
  drained[list] = true
  return {0, moved, skipped, more and 1 or 0}
end

local replies = reply_each(move, 4)
if #moves > 0 then call('PUBLISH', SPACE .. 'moved', '-\n' .. table.concat(moves, '\n')) end
return finish(replies)
