-- uses: base, life, each
-- Audit: what operators did, in a sorted set under one key, apart from the keys of the queues: 'SERIAL AT UNDONE_AT
-- UNDONE LINE' by serial. AT and UNDONE_AT are ms; UNDONE_AT is 0 for an action that was not undone; UNDONE is the
-- number of tasks that came back.
-- KEYS: the sorted set. ARGV per entry: 'begin', '' and a line; or the serial of a line, and 'end' with its new text,
--   'undone' with how many came back, 'drop' with ''.
-- Reply per entry: {0, serial, AT} begun · {0} · {1} there is no such line · {8, text}.
local MAX_LINES = 100000

local function line_of(key, serial)
  local found = call('ZRANGEBYSCORE', key, serial, serial)[1]
  if not found then return end
  return found, string.match(found, '^%d+ (%d+) (%d+) (%d+) (.*)$')
end

local function write(key, serial, ...)
  call('ZADD', key, serial, serial .. ' ' .. table.concat({...}, ' '))
end

local function change(key, what, serial, text)
  -- Allowed in a full Redis, which could not be emptied otherwise. The number of lines is bounded.
  may_grow()
  if what == 'begin' then
    serial = call('INCR', key .. ':last')
    write(key, string.format('%.0f', serial), score(now), 0, 0, text)
    call('ZREMRANGEBYRANK', key, 0, -MAX_LINES - 1)
    return {0, serial, now}
  end
  local old, at, undone_at, undone, line = line_of(key, serial)
  if not old then return {1} end
  call('ZREM', key, old)
  if what == 'end' then write(key, serial, at, undone_at, undone, text) end
  if what == 'undone' then write(key, serial, at, score(now), string.format('%.0f', undone + text), line) end
  return {0}
end

return finish(reply_each(change, 3))
