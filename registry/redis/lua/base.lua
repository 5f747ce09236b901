-- What all scripts share. Joined in front of each script when it is loaded, because Redis 3.2 has no `require`.
--
-- Keys of a queue whose list is Q (the name with the prefix). A name contains no brace, so no key below can be the list
-- of another queue:
--   Q, {Q}1 … {Q}9   ready, newest left; "\1" .. id (24 hex digits) [ ":" .. generation ], anything else is raw
--   (another program's)
--   {Q}t  hash  id -> payload, in every state        {Q}m  hash  id -> Task (below)
--   {Q}l  zset  lease id -> end of the lease, ms     {Q}d  zset  id -> due time, ms (delayed)
--   {Q}x  zset  id -> deletion time, ms (dead)       {Q}e  zset  id -> time of its end, ms (done)
--   {Q}f  zset  id -> time until which its push asked to keep it, ms (done; in {Q}e after that)
--   {Q}o  zset  id -> expiry, ms (ready or delayed, with a ttl)
--   {Q}k  hash  unique key -> id                     {Q}a  zset  lease id -> deletion time, ms (acknowledged)
--   {Q}b  zset  id -> deletion time, ms (payload of a large batch that is not complete: in {Q}t, and in no state)
--   {Q}c  string, Policy                             {Q}n  hash  counters: s0 … s9 tombstones in the lists, rates
--   {Q}i: strings, answers remembered for an Idempotency-Key, each with a time to live
--   undo:{Q}… lists, what operators deleted, each with a time to live (aside.lua)
--   SPACE .. index  zset  Q -> ms when something of it is next due; FAR when nothing is
--   SPACE .. deaths  hash  Q -> how many of its tasks died since a sweep collected the numbers
--   SPACE .. audit  zset  line -> serial, what operators did (audit.lua); SPACE .. audit:last the last serial
--   SPACE .. stats:LENGTH:BEGIN  hash, what the charts show of a step of time (stats.lua)
--   SPACE .. stats:last:PROCESS  string, the number of its last call of that script
--   SPACE .. stats:look  string, a mark that some daemon looks at all queues for the charts; not for the scripts
--   SPACE .. sights  zset  version of a worker, ' ', label -> when it was first seen, ms; not for the scripts
--   SPACE .. tokens zset  id of a token -> when it was used last, ms; not for the scripts
--   SPACE .. session-secret  string, what sessions of the dashboard are signed with, and cursors hashed
--
-- Records, in msgpack. Each field has a short name ("-": the long one is used here too), its long name, and a meaning.
-- registry/model has the same records with the same fields in the same order. A missing field has its default: nil,
-- false or 0. Times and durations are whole ms unless stated otherwise.
--
-- Error: how an attempt failed, as its worker reported it.
--   -   type            kind of error
--   -   message         what happened
--   -   trace           where it happened; only its end if it was too long
--   -   truncated       true: one of the three was cut
-- Lease: a lease and its holder.
--   i   id              the task's id, "-", and the nonce of the pop
--   l   length          of the lease, as last granted or renewed
--   f   granted_at      time of the pop
--   w   worker          name of the holder, from the pop
--   h   hidden          true: the lease of a hand-over, because the pop asked for none
--   k   answers         nonces of the latest 20 answers that granted it to repeats of one request
--   m   memory          the key that remembers that request
-- Attempt: a finished attempt in the history of its task.
--   a   number          1 for the first attempt
--   w   worker          name of the holder
--   f   leased_at       when it began
--   t   ended_at        when it ended
--   r   reason          how it ended: done failed released lease_expired handover_expired not_json
--   e   error           an Error
--   v   result          'too_large': its result was not kept
-- Task: a value of {Q}m. A task pushed without options has none until it is leased.
--   s   state           r ready, d delayed, l leased, x dead, e done; nil is r
--   p   priority        0 to 9
--   n   attempts        attempts allowed; nil: the queue's
--   b   backoff         nil: the queue's
--   l   lease_length    nil: the queue's
--   k   key             unique key: only one task with it may wait or run
--   r   keep_result     how long the task is kept after it is done
--   tp  traceparent     passed on to the worker unchanged
--   ts  tracestate      the same, with a traceparent only
--   w   awaited         true: a client waits for its end, so the end is published
--   x   expires_at      it dies then unless it has been leased
--   i   idempotent      true: pushed with an Idempotency-Key, so it is kept for a day
--   a   attempt         attempts made so far
--   g   generation      an element of a ready list with another generation is a tombstone; nil is 0
--   nn  first_attempts  attempts allowed at first; each retry grants as many again
--   q   lapses          expired leases; from the second on, the task waits for its backoff
--   du  due_at          when a delayed task becomes ready
--   rs  ready_since     when it became ready; nil: at its push
--   rh  at_head         true: it was put at the head of its list then
--   o   lease           a Lease, while it is leased
--   ll  last_lease      the last lease that ended; it may still acknowledge the task, late
--   pr  progress        a number reported by its holder
--   pm  message         a text reported by its holder
--   c   cancelled       true: it dies when its lease ends
--   h   history         Attempts, the newest last
--   y   reason          why it is dead: failed lease_expired handover_expired poison expired cancelled not_json
--   er  error           the latest Error
--   z   ended_at        when it became done or dead
--   v   result          JSON, unchanged
--   ku  kept_until      time until which its push asked to keep it: its score in {Q}f
--   u   unkept          true: it is deleted then, because the queue does not keep it
-- Retention: the value of a policy's retention.
--   -   done            s that done tasks are kept
--   -   done_max        number of done tasks kept
--   -   dead            s that dead tasks are kept
--   -   dead_max        number of dead tasks kept
-- Policy: {Q}c, the rules of a queue.
--   -   paused          true: no task is handed out
--   -   max_length      maximum number of ready and delayed tasks
--   -   lease           s
--   -   attempts        attempts allowed
--   -   backoff         s between the first failure and the second attempt
--   -   ttl             s
--   -   rate            starts per second
--   -   concurrency     leases at the same time
--   -   max_run         s after the pop beyond which a lease is not extended
--   -   poison          a task on which so many workers died is dead; 0: however many
--   -   retention       a Retention
--   -   paused_until    end of the pause; nil for a pause without an end
-- PushOptions: the options of a push.
--   d   delay           time between the push and when the task is ready
--   at  due_at          time at which it is ready; not together with d
--   p   priority        as in Task
--   x   ttl             time between the push and its expiry
--   l   lease_length    as in Task
--   r   keep_result     as in Task
--   b   backoff         as in Task
--   n   attempts        as in Task
--   k   key             as in Task
--   tp  traceparent     as in Task
--   ts  tracestate      as in Task
--   w   awaited         as in Task
--   ik  idempotency_key a repeat with the same key and fingerprint gets the answer to the first
--   ih  fingerprint     of the request's options and body
-- PopOptions: the options of a pop.
--   l   leased          true: the worker asks for a lease; nil: for a hand-over
--   c   count           maximum number of tasks (popmany)
--   s   start           take turns, beginning with this queue; nil: in the order of q (popmany)
--   w   worker          name of the worker
--   ik  idempotency_key as in PushOptions
--   ih  fingerprint     as in PushOptions
--   k   answer          nonce of this answer, which differs from those of other answers to the same request
--   n   poll            serial number of a new poll of its worker, published to the other daemons
--   q   queues          the lists (popmany)
--   o   owner           the name of the token it was made with; not for the scripts
--   z   only_repeat     true: only the leases that an earlier request with the same key was given
-- FailOptions: the options of a fail.
--   e   error           an Error
--   d   delay           used instead of the backoff
--   n   no_retry        true: the task is dead at once
-- ExtendOptions: what the holder of a lease reports.
--   p   progress        as in Task
--   m   message         as in Task
-- PolicyChange: a change of some rules of a queue.
--   -   set             rule -> value
--   -   reset           names of the rules to reset
--   p   pause           its length
--   t   trim_only       true: continue the work of an earlier change of the retention
--   x   dead_from       where to continue among the dead tasks
--   y   only_shorter    true: none of them is kept for longer than before
--
-- Two more records are read by scripts only: the field starts of {Q}n (limits.lua), and {Q}i… (replay.lua).
--
-- Codes, the first element of a reply:
--   0   OK              done
--   1   NOTHING         no task, no such task, lease lost, changed in the meantime
--   2   AGAIN           ask again
--   3   HELD_BACK       the queue is paused or limited
--   4   LEASE_REQUIRED  a queue with a concurrency limit grants only leases
--   5   KEY_REUSED      this Idempotency-Key belongs to another request
--   6   WRONG_TYPE      the key of the queue holds something else than a list
--   7   REDIS_FULL      no memory left
--   8   REFUSED         by Redis; its text follows
--   9   QUEUE_FULL      the queue has reached its max_length
--   10  KEY_TAKEN       another task has this key
--   11  NOT_JSON        another program's element, never to be served
--   12  EXPIRES_FIRST   the task would expire before it is due
--   13  PARTS_GONE      parts of a large batch were deleted before the last one arrived
-- A script that gives 1 or 2 a meaning of its own describes it in its file.
--
-- ARGV: 1 time after which the call is refused (ms, 0 for none), 2 SPACE, 3 process id, then a fixed number per entry.
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
    -- The daemon that made this call needs the notice too: it has not answered its own waiters.
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
