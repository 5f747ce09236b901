-- uses: base, life
-- Tasks whose lease ends without an answer, and which may have been cancelled meanwhile.

-- During its hand-over a plain task has no entry in {Q}m and looks ready. If it is cancelled then, the end of its lease
-- must not put it back, and its tombstone is counted but in no list.
local function cancelled_in_handover(tag, task, lease)
  if not task or not task.g or (task.o and task.o.i == lease) then return false end
  lift_tombstone(tag, task.p)
  return true
end

-- Such a task may even be cancelled and forgotten before its lease ends: then only its tombstone is left.
local function forgotten_in_handover(list, tag, id)
  if call('HEXISTS', tag .. 't', id) == 1 then return false end
  lift_tombstone(tag)
  drained[list] = true
  return true
end
