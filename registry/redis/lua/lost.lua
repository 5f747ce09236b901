-- uses: base, life
-- Tasks whose lease ends unheard, and which may have been cancelled under it.

-- A plain task on its way to a client has no entry in {Q}m and looks ready. Cancelled then, it is no longer its lease's
-- to give back, and its tombstone lies in no list.
local function taken_away(tag, task, lease)
  if not task or not task.g or (task.o and task.o.i == lease) then return false end
  lift_tombstone(tag, task.p)
  return true
end

-- Such a task may be cancelled and forgotten as well before its lease ends: then only its tombstone is left.
local function is_forgotten(list, tag, id)
  if call('HEXISTS', tag .. 't', id) == 1 then return false end
  lift_tombstone(tag)
  drained[list] = true
  return true
end
