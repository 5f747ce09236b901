-- What every verb shares. Joined in front of each script at load: Redis 3.2 knows no `require`.
--
-- Keys of a queue whose list is Q (the name with the prefix); a name holds no brace, so none of these is a queue's
-- list:
--   Q, {Q}1 … {Q}9   ready, newest left; "\1" .. id (24 hex digits) [ ":" .. generation ], anything else is raw
--   (another program's)
--   {Q}t  hash  id -> payload, in every state        {Q}m  hash  id -> Task (below)
--   {Q}l  zset  lease id -> end of the lease, ms     {Q}d  zset  id -> due, ms
--   {Q}x  zset  id -> forgotten at, ms (dead)        {Q}e  zset  id -> ended at, ms (done)
--   {Q}f  zset  id -> until when its push asked to keep it, ms (done; in {Q}e after that)
--   {Q}o  zset  id -> expires, ms (ready or delayed, with a ttl)
--   {Q}k  hash  unique key -> id                     {Q}a  zset  lease id -> forgotten at, ms (acknowledged)
--   {Q}b  zset  id -> forgotten at, ms (a payload of a large batch that is still coming: in {Q}t, and in no state)
--   {Q}c  string, Policy                             {Q}n  hash  counters: s0 … s9 tombstones in the lists, rates
--   {Q}i: strings, answers remembered for an Idempotency-Key, each with a time to live
--   undo:{Q} lists, what operators deleted, each with a time to live (aside.lua)
--   SPACE .. index  zset  Q -> ms when something of it is next due; FAR when nothing is
--   SPACE .. audit  zset  line -> serial, what operators did (audit.lua); SPACE .. audit:last the last serial
--
-- Records, in msgpack. Of each field: the name it has here ("-" where that is its long name), its long name, and what
-- it means. registry/model has the same records with the same fields in the same order. A field that is not there
-- has its default: nil, false or 0. Moments and lengths of time are whole ms where nothing else is said.
--
-- Error: how an attempt failed, in the words of its worker.
--   -   type            kind of error
--   -   message         what happened
--   -   trace           where; its end when it was too long
--   -   truncated       true when one of the three was cut
-- Lease: who has a task.
--   i   id              the task's id, "-", and the nonce of the pop
--   l   length          for how long it was given, or renewed, last
--   f   granted_at      when it was given
--   w   worker          who has it, as the pop said
--   h   hidden          true for the lease of a hand-over: the pop asked for none
--   k   answers         nonces of the answers that gave it to repeats of one request, the latest 20
--   m   memory          the key under which that request is remembered
-- Attempt: one that is over, in a task's history.
--   a   number          which one
--   w   worker          who had it
--   f   leased_at       from when
--   t   ended_at        until when
--   r   reason          how it ended: done failed released lease_expired handover_expired not_json
--   e   error           an Error
--   v   result          'too_large': there was a result, which is not kept
-- Task: a field of {Q}m. A task pushed without options has none there until it is leased.
--   s   state           r ready, d delayed, l leased, x dead, e done; nil is r
--   p   priority        0 to 9
--   n   attempts        how many it may have; nil: as many as the queue says
--   b   backoff         nil: the queue's
--   l   lease_length    nil: the queue's
--   k   key             of the tasks with this key one may wait or run
--   r   keep_result     for how long it is kept when it is done
--   tp  traceparent     handed to the worker as it came
--   w   awaited         true: somebody waits for its end, which is published
--   x   expires_at      dead then, unless it was leased before
--   i   idempotent      true: pushed with an Idempotency-Key, so kept a day
--   a   attempt         leases counted so far
--   g   generation      an element of a ready list that names another is a tombstone; nil is 0
--   nn  first_attempts  n of the first time, which each retry grants again
--   q   lapses          leases that ran out; behind the first one it waits for the backoff
--   du  due_at          when a delayed one is ready
--   rs  ready_since     since when it is ready; nil: since its push
--   rh  at_head         true: it was put to the head of its list then
--   o   lease           a Lease, while it is leased
--   ll  last_lease      the lease that ended last, which may acknowledge it late
--   pr  progress        a number its holder told
--   pm  message         a text its holder told
--   c   cancelled       true: it is dead when its lease ends
--   h   history         Attempts, the newest last
--   y   reason          why it is dead
--   er  error           the last Error
--   z   ended_at        when it was done or dead
--   v   result          JSON as it came
--   ku  kept_until      until when its push asked to keep it, which is its place in {Q}f
--   u   unkept          true: forgotten then; the queue does not keep it
-- Retention: the value of a policy's retention.
--   -   done            s that the done are kept
--   -   done_max        how many of them
--   -   dead            s that the dead are kept
--   -   dead_max        how many of them
-- Policy: {Q}c, the rules of a queue.
--   -   paused          true: nothing is handed out
--   -   max_length      ready and delayed tasks
--   -   lease           s
--   -   attempts        how many a task may have
--   -   backoff         s before the second attempt
--   -   ttl             s
--   -   rate            starts a second
--   -   concurrency     leases at a time
--   -   max_run         s that a lease may be renewed for in all
--   -   retention       a Retention
--   -   paused_until    the end of the pause, nil for none
-- PushOptions: what a push says about its task.
--   d   delay           ready so long after the push
--   at  due_at          ready then; not beside d
--   p   priority        as in Task
--   x   ttl             it expires so long after the push
--   l   lease_length    as in Task
--   r   keep_result     as in Task
--   b   backoff         as in Task
--   n   attempts        as in Task
--   k   key             as in Task
--   tp  traceparent     as in Task
--   w   awaited         as in Task
--   ik  idempotency_key a repeat with the same key and fingerprint is answered as the first was
--   ih  fingerprint     of the request's options and body
-- PopOptions: what a pop says.
--   l   leased          true: the worker asks for a lease; nil: for a hand-over
--   c   count           tasks at most (popmany)
--   s   start           in turns, from this queue on; nil: in the order of q (popmany)
--   w   worker          who polls
--   ik  idempotency_key as in PushOptions
--   ih  fingerprint     as in PushOptions
--   k   answer          the nonce by which this answer is told from others to the same request
--   n   poll            serial of a new poll of its worker, told to the other daemons
--   q   queues          the lists (popmany)
-- FailOptions: what a fail says.
--   e   error           an Error
--   d   delay           in place of the backoff
--   n   no_retry        true: dead at once
-- ExtendOptions: what the holder of a lease tells.
--   p   progress        as in Task
--   m   message         as in Task
-- PolicyChange: some rules of a queue change.
--   -   set             rule -> value
--   -   reset           names of rules
--   p   pause           for so long
--   t   trim_only       true: go on with what an earlier change of the retention left
--   x   dead_from       from where the dead are gone over
--   y   only_shorter    true: none of them stays for longer than before
--
-- Only scripts read what is packed in {Q}n's field starts (limits.lua) and under {Q}i (replay.lua).
--
-- Codes, the first element of a reply:
--   0   OK              done
--   1   NOTHING         no task, no such task, lease lost, changed by another meanwhile
--   2   AGAIN           ask again
--   3   HELD_BACK       paused or limited
--   4   LEASE_REQUIRED  a queue with a limit hands out leases only
--   5   KEY_REUSED      this Idempotency-Key belongs to another request
--   6   WRONG_TYPE      another program's key under the queue's name
--   7   REDIS_FULL      no memory left
--   8   REFUSED         by Redis, with its words
--   9   QUEUE_FULL      max_length
--   10  KEY_TAKEN       another task has this key
--   11  NOT_JSON        another program's element, never to be served
--   12  EXPIRES_FIRST   its ttl ends before it is due
--   13  PARTS_GONE      parts of a large batch were forgotten before the last one came
-- A verb's own meaning of 1 and 2 is told in its file.
--
-- ARGV: 1 not after (ms, 0 for no bound), 2 SPACE, 3 process id, then a fixed stride per entry.
redis.replicate_commands()
local call = redis.call
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local SPACE, PROCESS, FAR = ARGV[2], ARGV[3], 1e14
local INDEX, FAR_SCORE = SPACE .. 'index', '100000000000000'
-- Redis 7.0 was the first to tell scripts its version.
local SINCE_7 = redis.REDIS_VERSION_NUM ~= nil
local woken, is_woken, dues, drained, ended, before_end = {}, {}, {}, {}, {}, {}

-- Notify those who wait at this queue that they should look again.
local function wake(list)
  if not is_woken[list] then
    is_woken[list] = true
    woken[#woken + 1] = list
  end
end

-- The queue exists, and the sweeper must look at it at `at` (ms) at the latest.
local function due(list, at)
  local earlier = dues[list]
  if not earlier or earlier > at then dues[list] = at end
end

-- The reply for one entry's failure: Redis 7 raises tables, older ones strings. A Redis that takes no writes refuses
-- every entry, so the whole call fails: the connection must learn of it.
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

-- The reply of `act` to an entry, or why it failed.
local function reply_of(act, ...)
  local ok, reply = pcall(act, ...)
  if ok then return reply end
  return refusal(reply)
end

-- A full Redis refuses commands that may need memory, unless the script has already written something that needs none.
-- Verbs that need little memory, or free some, begin with such a write.
local function may_grow() call('DEL', SPACE .. 'probe') end

local function holds_nothing(lists)
  local keys = {}
  for _, list in ipairs(lists) do
    local tag, n = '{' .. list .. '}', #keys
    keys[n + 1], keys[n + 2], keys[n + 3] = list, tag .. 't', tag .. 'c'
    keys[n + 4], keys[n + 5], keys[n + 6] = tag .. 'a', tag .. 'l', tag .. 'n'
  end
  return call('EXISTS', unpack(keys)) == 0
end

-- Queues from which something was taken leave the index when nothing of them is left.
local function leave_index()
  local lists, gone = {}, {}
  for list in pairs(drained) do
    if not dues[list] then lists[#lists + 1] = list end
  end
  if #lists == 0 then return end
  -- Lua cannot pass more arguments than this to one command.
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
  -- FAR is the latest score: a queue that is in the index already keeps its own.
  if #far > 0 then call('ZADD', INDEX, 'NX', unpack(far)) end
  if #near == 0 then return end
  -- Since Redis 6.2 ZADD has LT, which only lowers scores.
  if SINCE_7 then
    call('ZADD', INDEX, 'LT', unpack(near))
    return
  end
  for n = 1, #near, 2 do
    local current = call('ZSCORE', INDEX, near[n + 1])
    if not current or tonumber(current) > tonumber(near[n]) then call('ZADD', INDEX, near[n], near[n + 1]) end
  end
end

-- Write what all entries of the call share, once, at its end.
local function finish(replies)
  for _, step in ipairs(before_end) do step() end
  leave_index()
  enter_index()
  if #woken > 0 then
    call('PUBLISH', SPACE .. 'wake', PROCESS .. '\n' .. table.concat(woken, '\n'))
  end
  if #ended > 0 then
    -- Also to the daemon that made this call: it has not told anybody yet.
    call('PUBLISH', SPACE .. 'ended', '-\n' .. table.concat(ended, '\n'))
  end
  return replies
end

-- A ready element of ours: its id and generation; nothing for what another program pushed.
local function parse_element(e)
  local id, generation = string.match(e, '^\1(%x+):?(%d*)$')
  if id and #id == 24 then return id, tonumber(generation) or 0 end
end

-- A call that reaches Redis after its clients have given up must change nothing; the reply carries Redis's time.
local function too_late()
  local bound = tonumber(ARGV[1])
  return bound > 0 and now > bound
end
