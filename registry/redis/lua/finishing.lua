-- uses: base, life, history
-- Done: kept with its result as long as the push, or the queue's retention, asks for it; else forgotten at once.
local function forget(list, g, id)
  call('HDEL', g .. 't', id)
  call('HDEL', g .. 'm', id)
  drained[list] = true
end

local function keep_policy(list, g, rules)
  if next(rules) == nil then
    call('DEL', g .. 'c')
    drained[list] = true
  else
    call('SET', g .. 'c', cmsgpack.pack(rules))
    due(list, FAR)
  end
end

-- How long a queue keeps its done, ms.
local function done_for(g) return in_ms(retention_of(g).done or 3600) end

-- Beyond the queue's limit the oldest go; those that a push asked to keep are in {Q}f, and not counted. How many are
-- still over.
local MOST_TRIMMED = 1000
local function trim(list, g)
  local over = call('ZCARD', g .. 'e') - (retention_of(g).done_max or 1000)
  if over <= 0 then return 0 end
  local gone = call('ZRANGE', g .. 'e', 0, math.min(over, MOST_TRIMMED) - 1)
  call('ZREM', g .. 'e', unpack(gone))
  call('HDEL', g .. 't', unpack(gone))
  call('HDEL', g .. 'm', unpack(gone))
  drained[list] = true
  return over - #gone
end

-- Done tasks of this call, written together: what is known of them by queue, {id, m, id, m, …}, and the scores of both
-- sets by their keys, {score, id, score, id, …}.
local ends, known_ends = {}, {}
-- More arguments a command does not take from Lua at once.
local MOST_ARGUMENTS = 2000

local function write_ends(list)
  local g, fields = '{' .. list .. '}', known_ends[list]
  if not fields then return end
  call('HMSET', g .. 'm', unpack(fields))
  for _, key in ipairs({g .. 'e', g .. 'f'}) do
    if ends[key] then call('ZADD', key, unpack(ends[key])) end
    ends[key] = nil
  end
  trim(list, g)
  known_ends[list] = nil
end

before_end[#before_end + 1] = function()
  for _, list in ipairs(KEYS) do write_ends(list) end
end

local function make_done(list, g, id, m, result, handed_over)
  free_key(g, id, m)
  slot_freed(list, g)
  -- What was handed over without lease is not kept for the queue's sake, unless it had a key.
  local stay = handed_over and not m.k and 0 or done_for(g)
  local asked_for = math.max(m.r or 0, m.i and DAY or 0)
  local lease = m.o and m.o.i
  remember(m, 'done')
  if result == '\255' then
    m.h[#m.h].v = 'too_large'
    result = ''
  end
  m.s, m.v, m.z, m.ll = 'e', result ~= '' and result or nil, now, lease
  tell_ended(list, id, m)
  if stay == 0 and asked_for == 0 then return forget(list, g, id) end
  m.u, m.ku = stay == 0 or nil, asked_for > 0 and now + asked_for or nil
  local key = g .. (asked_for > 0 and 'f' or 'e')
  local scores, fields = ends[key] or {}, known_ends[list] or {}
  local n, at = #scores, #fields
  scores[n + 1], scores[n + 2] = score(asked_for > 0 and now + asked_for or now), id
  fields[at + 1], fields[at + 2] = id, cmsgpack.pack(m)
  ends[key], known_ends[list] = scores, fields
  due(list, now + (asked_for > 0 and asked_for or stay))
  if at + 2 >= MOST_ARGUMENTS then write_ends(list) end
end

-- What a push asked for is over: from now on the queue keeps it like all its done, if it does so at all.
local function no_longer_asked_for(list, g, id)
  local m = known(g, id)
  if not m or m.u or m.z + done_for(g) <= now then return forget(list, g, id) end
  call('ZADD', g .. 'e', score(m.z), id)
end
