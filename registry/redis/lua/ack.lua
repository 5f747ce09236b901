-- uses: base, life, finishing
-- Ack: the task is done. A repeat within ten minutes gets the same reply.
-- KEYS: the list of each entry. ARGV per entry: lease id, result ('' for none, the byte 255 for one that was too
--   large).
-- Reply per entry: {0, 'done', for how long it ran, ms, -1 for unknown[, the name of its worker]} · {0, 'late', the
--   same} the lease had run out, but nobody else has the task · {0, 'done'} a repeat · {1} the lease is lost · {8,
--   text}; of the first entries only, where the tasks' records are large.
local TEN_MINUTES = 600000
local acked, traces, freed = {}, {}, {}

-- The record of each entry's task, encoded; read for many entries of a queue at once. The record of a leased task names
-- its lease.
local found = {}

-- The entries of each queue, how many of them have been read, and how many to read next.
local asks, FEW = {}, 16

-- By queue: whether any of its leases has run out and the sweeper has not seen it yet.
local some_lapsed = {}

local function find(list)
  local entries = asks[list]
  if entries.read == 0 then some_lapsed[list] = call('ZCOUNT', '{' .. list .. '}l', '-inf', now) > 0 end
  local ids, first = {}, entries.read
  entries.read = math.min(#entries, first + entries.next)
  entries.next = 2 * entries.next
  for n = first + 1, entries.read do ids[n - first] = string.match(ARGV[2 + entries[n] * 2], '^[^-]*') end
  local encoded = call('HMGET', '{' .. list .. '}m', unpack(ids))
  for n = first + 1, entries.read do found[entries[n]] = encoded[n - first] end
end

local function ack(i, list, lease, result)
  local here = acked[list] or {}
  if here[lease] then return {0, 'done'} end
  local tag = '{' .. list .. '}'
  local id = string.match(lease, '^[^-]*')
  local status = 'done'
  local task = unpack_task(found[i])
  local holds = task and task.s == 'l' and task.o and task.o.i == lease
  if holds then
    -- Its lease is removed below, with the others.
    if some_lapsed[list] and not is_held(tag, lease) then status = 'late' end
  elseif call('ZREM', tag .. 'l', lease) == 1 then
    task = load_task(tag, id) or {a = 1}
  else
    if call('ZSCORE', tag .. 'a', lease) then return {0, 'done'} end
    task = load_task(tag, id)
    if not task or task.ll ~= lease or task.s == 'l' or task.s == 'e' or task.y == 'cancelled' then return {1} end
    if task.s == 'r' then leave_tombstone(list, tag, task) end
    if task.s == 'd' then call('ZREM', tag .. 'd', id) end
    if task.s == 'x' then call('ZREM', tag .. 'x', id) end
    -- The late worker is the one that had it last.
    local last = task.h and task.h[#task.h]
    task.o = last and {i = lease, w = last.w, f = last.f}
    task.y, status = nil, 'late'
  end
  local run = task.o and task.o.f and now - task.o.f or -1
  local worker = task.o and task.o.w
  make_done(list, tag, id, task, result, false)
  if holds then
    local leases = freed[list] or {}
    leases[#leases + 1] = lease
    freed[list] = leases
  end
  local queue_traces = traces[list] or {}
  queue_traces[#queue_traces + 1], queue_traces[#queue_traces + 2] = score(now + TEN_MINUTES), lease
  here[lease] = true
  traces[list], acked[list] = queue_traces, here
  due(list, now + TEN_MINUTES)
  return {0, status, run, worker}
end

local replies = {}
for i, list in ipairs(KEYS) do
  local entries = asks[list] or {read = 0, next = FEW}
  entries[#entries + 1] = i
  asks[list] = entries
end
for i, list in ipairs(KEYS) do
  if has_read_enough() then break end
  -- If this fails on a key of another type, `ack` fails on it as well, and its reply says so.
  if found[i] == nil then pcall(find, list) end
  replies[i] = reply_of(ack, i, list, ARGV[2 + i * 2], ARGV[3 + i * 2])
end
-- Memory is freed before anything is written, so that a full Redis can still be drained.
for list, leases in pairs(freed) do call('ZREM', '{' .. list .. '}l', unpack(leases)) end
for list, pairs_ in pairs(traces) do call('ZADD', '{' .. list .. '}a', unpack(pairs_)) end
return finish(replies)
