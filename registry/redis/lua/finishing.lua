-- uses: base, life
-- Done: kept with its result as long as the push, or the queue's retention, asks for it; else forgotten at once.
local function forget(list, g, id)
  call('HDEL', g .. 't', id)
  call('HDEL', g .. 'm', id)
  drained[list] = true
end

-- Done tasks of this call by queue, written together: {score, id, score, id, …}, and what is known of them, {id, m, id, m, …}.
local ends, known_ends = {}, {}
-- More arguments a command does not take from Lua at once.
local MOST_ARGUMENTS = 2000

-- Beyond the queue's limit the oldest go, `most` of them at once. Those that a push asked to keep stay for that time, and are passed
-- over: `pages` of them in front, and then a page somewhere behind, so that they do not shield the others for long. Their scores are no
-- whole numbers, so that of the others nothing need be read. How many are still over.
local ASKED_FOR = '.5'
local function is_asked_for(at) return string.find(at, '.', 1, true) end
local MOST_TRIMMED, READ_A_PAGE = 500, 20
local function trim(list, g, most, pages)
  local over = call('ZCARD', g .. 'e') - ((policy_of(g).retention or {}).done_max or 1000)
  if over <= 0 then return 0 end
  local goes, gone, from = math.min(over, most), {}, 0
  for page = 0, pages do
    -- The microseconds of the clock: Redis gives every run of a script the same random numbers.
    if page == pages then from = from + clock[2] % math.max(over - from, 1) end
    if from >= over then break end
    local oldest = call('ZRANGE', g .. 'e', from, math.min(from + goes + 8, over - 1), 'WITHSCORES')
    local asked, is_over = {}, {}
    for i = 1, #oldest, 2 do
      if is_asked_for(oldest[i + 1]) and #asked < READ_A_PAGE then asked[#asked + 1] = oldest[i] end
    end
    for i, packed in ipairs(#asked > 0 and call('HMGET', g .. 'm', unpack(asked)) or {}) do
      local m = packed and cmsgpack.unpack(packed)
      is_over[asked[i]] = not (m and ((m.r and m.z + m.r > now) or (m.i and m.z + DAY > now)))
    end
    for i = 1, #oldest, 2 do
      if #gone < goes and (is_over[oldest[i]] or not is_asked_for(oldest[i + 1])) then gone[#gone + 1] = oldest[i] end
    end
    if #gone == goes then break end
    from = from + #oldest / 2
  end
  if #gone == 0 then return 0 end
  call('ZREM', g .. 'e', unpack(gone))
  call('HDEL', g .. 't', unpack(gone))
  call('HDEL', g .. 'm', unpack(gone))
  drained[list] = true
  return over - #gone
end

local function write_ends(list)
  local g, scores = '{' .. list .. '}', ends[list]
  if not scores then return end
  call('HMSET', g .. 'm', unpack(known_ends[list]))
  call('ZADD', g .. 'e', unpack(scores))
  -- Twice as many as came, so that a backlog shrinks.
  trim(list, g, math.min(#scores + 4, MOST_TRIMMED), 1)
  ends[list], known_ends[list] = nil, nil
end

before_end[#before_end + 1] = function()
  for _, list in ipairs(KEYS) do write_ends(list) end
end

local function make_done(list, g, id, m, result, handed_over)
  free_key(g, id, m)
  slot_freed(list, g)
  local retention = policy_of(g).retention or {}
  local stay = (m.r or 0)
  if not handed_over then stay = math.max(stay, (retention.done or 3600) * 1000) end
  if m.i then stay = math.max(stay, DAY) end
  if m.k and stay == 0 then stay = (retention.done or 3600) * 1000 end
  local lease = m.o and m.o.i
  remember(m, 'done')
  m.s, m.v, m.z, m.ll = 'e', result or nil, now, lease
  tell_ended(list, id, m)
  if stay == 0 then return forget(list, g, id) end
  local scores, fields = ends[list] or {}, known_ends[list] or {}
  local n = #scores
  scores[n + 1], scores[n + 2] = score(now + stay) .. ((m.r or m.i) and ASKED_FOR or ''), id
  fields[n + 1], fields[n + 2] = id, cmsgpack.pack(m)
  ends[list], known_ends[list] = scores, fields
  due(list, now + stay)
  if n + 2 >= MOST_ARGUMENTS then write_ends(list) end
end
