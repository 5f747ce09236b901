-- uses: base, life, lost, each
-- Put back: the client was lost before its answer was sent. The task goes to the head; the attempt is not counted.
-- KEYS: the list of each entry, in the order they were taken. ARGV per entry: lease id,
-- the answer it belongs to ('' for the only one). Reply per entry: {0} · {1} the lease was gone, or another answer gave
-- it too. A repeat of the request, perhaps at another daemon, may have got the same lease before or after this answer:
-- the task goes back when the last of these answers is lost. An answer that was sent but never read counts as one of
-- them until the lease ends.
local function last_answer(tag, id, task, answer)
  local others = {}
  for _, one in ipairs(task.o.k) do
    if one ~= answer then others[#others + 1] = one end
  end
  if #others == 0 then return #task.o.k > 0 end
  if #others < #task.o.k then
    task.o.k = others
    save_task(tag, id, task)
  end
  return false
end

local function put_back(list, lease, answer)
  local tag = '{' .. list .. '}'
  local id = string.match(lease, '^[^-]*')
  check_is_list(list)
  local task = load_task(tag, id)
  if task and task.o and task.o.k and not last_answer(tag, id, task, answer) then return {1} end
  if call('ZREM', tag .. 'l', lease) == 0 then return {1} end
  if cancelled_in_handover(tag, task, lease) or (not task and forgotten_in_handover(list, tag, id)) then return {0} end
  if task then
    task.a, task.o = math.max(0, (task.a or 1) - 1), nil
    if task.c then
      bury(list, tag, id, task, 'cancelled')
      return {0}
    end
  end
  make_ready(list, tag, id, task or {}, true)
  return {0}
end

-- Last to first: each goes in front of the one before, so the task taken first ends up first.
may_grow()
return finish(reply_each(put_back, 2, true))
