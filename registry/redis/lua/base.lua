-- What every verb shares. Joined in front of each script at load: Redis 3.2 knows no `require`.
--
-- Keys of a queue whose list is Q (the name with the prefix); a name holds no brace, so none of these is a queue's list:
--   Q, {Q}1 … {Q}9   ready, newest left; "\1" .. id (24 hex digits) [ ":" .. generation ], anything else is raw (another program's)
--   {Q}t  hash  id -> payload, in every state        {Q}m  hash  id -> what is known of it beyond the payload (below)
--   {Q}l  zset  lease id -> end of the lease, ms     {Q}d  zset  id -> due, ms
--   {Q}x  zset  id -> forgotten at, ms (dead)        {Q}e  zset  id -> ended at, ms (done)
--   {Q}f  zset  id -> until when its push asked to keep it, ms (done; in {Q}e after that)
--   {Q}o  zset  id -> expires, ms (ready or delayed, with a ttl)
--   {Q}k  hash  unique key -> id                     {Q}a  zset  lease id -> forgotten at, ms (acknowledged)
--   {Q}b  zset  id -> forgotten at, ms (a payload of a large batch that is still coming: in {Q}t, and in no state)
--   {Q}c  policy, msgpack                            {Q}n  hash  counters: s0 … s9 tombstones in the lists, rates
--   {Q}i: strings, answers remembered for an Idempotency-Key, each with a time to live
--   SPACE .. index  zset  Q -> ms when something of it is next due; FAR when nothing is
-- A task pushed without options has no entry in {Q}m until it is leased; there: s state (r d l x e), a attempts, g generation,
--   p priority, x expires, n attempts allowed, b backoff, l lease, k key, r result kept, h history, o holder, v result, z ended at, rs ready since, rh then put to the head, u not kept for the queue's sake, …
-- ARGV: 1 not after (ms, 0 for no bound), 2 SPACE, 3 process id, then a fixed stride per entry.
redis.replicate_commands()
local call = redis.call
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local SPACE, PROCESS, FAR = ARGV[2], ARGV[3], 1e14
local INDEX, FAR_SCORE = SPACE .. 'index', '100000000000000'
-- 7.0 was the first to tell scripts which one it is.
local SINCE_7 = redis.REDIS_VERSION_NUM ~= nil
local woken, is_woken, dues, drained, ended, before_end = {}, {}, {}, {}, {}, {}

-- What the ids of this call's tasks begin with: Redis's time in ms and µs. With a tail of ten digits, which rises with each push of a
-- daemon, they are in the order of the pushes, whichever daemons they came through: where moments tie, the id decides.
local STAMP = string.format('%011x%03x', now, clock[2] % 1000)

-- Somebody waiting at this queue has a reason to look again.
local function wake(list)
  if not is_woken[list] then
    is_woken[list] = true
    woken[#woken + 1] = list
  end
end

-- The queue exists, and the sweeper must look at it at `at` (ms) at the latest.
local function due(list, at)
  local known = dues[list]
  if not known or known > at then dues[list] = at end
end

-- One entry's failure as its reply: Redis 7 raises tables, older ones strings. A Redis that takes no writes refused every entry, and
-- the whole call fails: those who watch the connection are to know.
local NO_WRITES = {'READONLY', 'MISCONF', 'NOREPLICAS'}
local function refusal(e)
  local text = type(e) == 'table' and (e.err or 'error') or tostring(e)
  for _, word in ipairs(NO_WRITES) do
    if string.find(text, word, 1, true) then error(e, 0) end
  end
  if string.find(text, 'WRONGTYPE', 1, true) then return {6, text} end
  if string.find(text, 'OOM command', 1, true) then return {7, text} end
  return {8, text}
end

-- A full Redis refuses what may need memory, but not behind a write that does not. What is small, or leads to less, begins with one.
local function may_grow() call('DEL', SPACE .. 'probe') end

local function holds_nothing(lists)
  local keys = {}
  for _, list in ipairs(lists) do
    local g, n = '{' .. list .. '}', #keys
    keys[n + 1], keys[n + 2], keys[n + 3], keys[n + 4], keys[n + 5], keys[n + 6] = g .. 't', g .. 'c', g .. 'a', g .. 'l', g .. 'n', list
  end
  return call('EXISTS', unpack(keys)) == 0
end

-- Queues of which something was taken leave the index when nothing of them is left.
local function leave_index()
  local lists, gone = {}, {}
  for list in pairs(drained) do
    if not dues[list] then lists[#lists + 1] = list end
  end
  if #lists == 0 then return end
  -- More arguments a command does not take from Lua at once.
  if #lists <= 1000 and holds_nothing(lists) then
    gone = lists
  else
    for _, list in ipairs(lists) do
      if holds_nothing({list}) then gone[#gone + 1] = list end
    end
  end
  if #gone > 0 then call('ZREM', INDEX, unpack(gone)) end
end

local function enter_index()
  local far, near = {}, {}
  for list, at in pairs(dues) do
    local scores = at >= FAR and far or near
    scores[#scores + 1], scores[#scores + 2] = at >= FAR and FAR_SCORE or string.format('%.0f', at), list
  end
  -- Nothing is due later: who is there keeps its score.
  if #far > 0 then call('ZADD', INDEX, 'NX', unpack(far)) end
  if #near == 0 then return end
  -- From Redis 6.2 on ZADD can lower scores.
  if SINCE_7 then
    call('ZADD', INDEX, 'LT', unpack(near))
    return
  end
  for n = 1, #near, 2 do
    local known = call('ZSCORE', INDEX, near[n + 1])
    if not known or tonumber(known) > tonumber(near[n]) then call('ZADD', INDEX, near[n], near[n + 1]) end
  end
end

-- What all entries of the call share is written once, at its end.
local function finish(replies)
  for _, step in ipairs(before_end) do step() end
  leave_index()
  enter_index()
  if #woken > 0 then
    call('PUBLISH', SPACE .. 'wake', PROCESS .. '\n' .. table.concat(woken, '\n'))
  end
  if #ended > 0 then
    -- To the daemon that did it too: it has told nobody yet.
    call('PUBLISH', SPACE .. 'ended', '-\n' .. table.concat(ended, '\n'))
  end
  return replies
end

-- A ready element of ours: its id and generation; nothing for what another program pushed.
local function ours(e)
  local id, generation = string.match(e, '^\1(%x+):?(%d*)$')
  if id and #id == 24 then return id, tonumber(generation) or 0 end
end

-- A call that reaches Redis after its clients have given up must change nothing; the answer carries the right time.
local function too_late()
  local bound = tonumber(ARGV[1])
  return bound > 0 and now > bound
end
