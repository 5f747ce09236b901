-- uses: base, life
-- The history of a task.

-- The record of a task has 64 KiB at most, without its result. All but the history has 16 KiB at most; the history
-- keeps the newest twenty attempts, or as many of them as fit.
local MAX_ATTEMPTS, MAX_BYTES_OF_THEM = 20, 49152

local function bytes_of(attempt)
  local bytes = 100 + #(attempt.w or '') + #(attempt.r or '')
  if type(attempt.e) ~= 'table' then return bytes end
  for _, text in pairs(attempt.e) do bytes = bytes + 16 + (type(text) == 'string' and #text or 0) end
  return bytes
end

-- Add the end of an attempt to the task's history.
local function remember(task, reason, err)
  local h = task.h or {}
  local lease = task.o or {}
  h[#h + 1] = {a = task.a or 0, w = lease.w, f = lease.f, t = now, r = reason, e = err}
  if #h > 1 then
    local kept, bytes = {}, 0
    for i = #h, math.max(1, #h - MAX_ATTEMPTS + 1), -1 do
      bytes = bytes + bytes_of(h[i])
      if bytes > MAX_BYTES_OF_THEM and #kept > 0 then break end
      table.insert(kept, 1, h[i])
    end
    h = kept
  end
  task.h, task.o = h, nil
end
