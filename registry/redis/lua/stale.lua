-- uses: base
-- Whether an element of this generation is a tombstone: its `task` (nil for a plain one) is in another state now, or
-- ready under a later generation. One whose payload is gone is a tombstone as well.
local function is_stale(task, generation)
  return task and (task.s ~= 'r' or (task.g or 0) ~= generation)
end
