-- uses: base, life, finishing
-- What operators delete is set aside for eleven minutes, so that it can be undone. Each operation has its own lists,
-- undo:{Q}OPERATION:0, 1, …, which expire. An undo takes the last record first. A record, in msgpack, is
-- {kind, id, …}:
--   'r' id, payload, Task, ''       a ready task whose element was taken out of its list
--   't' id, payload, Task, ''       a ready task whose element may still be in its list, as a tombstone
--   'd' 'x' 'e' 'f' id, payload, Task, score   a task of the sorted set of this letter
--   'raw' '', element, priority     an element of another program
--   'w' id, what a retry changes    a dead task that was retried
--   'c' id, what a cancel changes   a waiting task that was cancelled
--   'm' id, lease                   a leased task that was marked
-- Task is packed, and '' for a plain one. undo:{Q}OPERATION:left has the records that could not come back.
-- undo:{Q}OPERATION:undone exists from the first call of an undo on: an operation that is still running then stops.
local ASIDE_FOR = 660000
local aside_bytes, aside_until = 0, {}

-- A call that has read or copied this many bytes leaves the rest to the next call.
local function is_enough() return bytes_read + aside_bytes >= MAX_BYTES_READ end

local function is_undone(tag, place)
  return call('EXISTS', 'undo:' .. tag .. string.match(place, '^[^:]*') .. ':undone') == 1
end

-- Fail in a full Redis before anything has changed: what is set aside frees no memory. The command does nothing.
local function must_have_room() call('RPUSHX', SPACE .. 'probe', '') end

-- `place` is 'OPERATION:number', or '' to set nothing aside.
local function set_aside(tag, place, ...)
  if place == '' then return end
  local key, encoded = 'undo:' .. tag .. place, cmsgpack.pack({...})
  call('RPUSH', key, encoded)
  aside_bytes = aside_bytes + #encoded
  aside_until[key] = true
end

local function set_task_aside(tag, place, kind, id, encoded, score)
  if place == '' then return end
  set_aside(tag, place, kind, id, call('HGET', tag .. 't', id), encoded or '', score or '')
end

before_end[#before_end + 1] = function()
  for key in pairs(aside_until) do call('PEXPIRE', key, ASIDE_FOR) end
end
