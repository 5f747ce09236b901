-- What every verb shares. Joined in front of each script at load: Redis 3.2 knows no `require`.
--
-- Keys of a queue whose list is Q (the name with the prefix); a name holds no brace, so none of these is a queue's list:
--   Q, {Q}1 … {Q}9   ready, newest left; "\1" .. id (24 hex digits) [ ":" .. generation ], anything else is raw (another program's)
--   {Q}t  hash  id -> payload, in every state        {Q}m  hash  id -> what is known of it beyond the payload (below)
--   {Q}l  zset  lease id -> end of the lease, ms     {Q}d  zset  id -> due, ms
--   {Q}x  zset  id -> forgotten at, ms (dead)        {Q}e  zset  id -> forgotten at, ms (done)
--   {Q}o  zset  id -> expires, ms (ready or delayed, with a ttl)
--   {Q}k  hash  unique key -> id                     {Q}a  zset  lease id -> forgotten at, ms (acknowledged)
--   {Q}c  policy, msgpack                            {Q}n  hash  counters: s0 … s9 tombstones in the lists, rates
--   {Q}i: strings, answers remembered for an Idempotency-Key, each with a time to live
--   SPACE .. index  zset  Q -> ms when something of it is next due; FAR when nothing is
-- A task pushed without options has no entry in {Q}m until it is leased; there: s state (r d l x e), a attempts, g generation,
--   p priority, x expires, n attempts allowed, b backoff, l lease, k key, r result kept, h history, o holder, v result, …
-- ARGV: 1 not after (ms, 0 for no bound), 2 SPACE, 3 process id, then a fixed stride per entry.
redis.replicate_commands()
local call = redis.call
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local SPACE, PROCESS, FAR = ARGV[2], ARGV[3], 1e14
local woken, is_woken, dues, drained, ended, before_end = {}, {}, {}, {}, {}, {}

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

-- One entry's failure as its reply: Redis 7 raises tables, older ones strings.
local function refusal(e)
  local text = type(e) == 'table' and (e.err or 'error') or tostring(e)
  if string.find(text, 'WRONGTYPE', 1, true) then return {6, text} end
  if string.find(text, 'OOM command', 1, true) then return {7, text} end
  return {8, text}
end

-- What all entries of the call share is written once, at its end.
local function finish(replies)
  for _, step in ipairs(before_end) do step() end
  local index = SPACE .. 'index'
  for list in pairs(drained) do
    if not dues[list] then
      local g = '{' .. list .. '}'
      if call('EXISTS', g .. 't', g .. 'c', g .. 'a', list) == 0 then call('ZREM', index, list) end
    end
  end
  for list, at in pairs(dues) do
    local known = call('ZSCORE', index, list)
    if not known or tonumber(known) > at then call('ZADD', index, at, list) end
  end
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
