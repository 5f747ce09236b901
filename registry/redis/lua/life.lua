-- uses: base
-- The moves between the states of a task. `m` is the unpacked entry of {Q}m, a table in any case after `known`.
local DAY = 86400000
-- What somebody waits for is kept so long at least after its end, whatever its push or its queue says, ms.
local FOR_WHO_WAITS = 60000

-- Redis makes text of a number with printf, and a number of the text again: most scores of a call are alike.
local score_of = {}
local function score(at)
  local text = score_of[at]
  if not text then
    text = string.format('%.0f', at)
    score_of[at] = text
  end
  return text
end

-- A call that reads much of what is known of tasks keeps Redis from everybody: it stops, and its other entries go with the next one.
local MOST_KNOWN_BYTES = 1048576
local known_bytes = 0
local function has_read_enough() return known_bytes >= MOST_KNOWN_BYTES end

local function unpack_known(packed)
  if not packed then return nil end
  known_bytes = known_bytes + #packed
  return cmsgpack.unpack(packed)
end

local function known(g, id) return unpack_known(call('HGET', g .. 'm', id)) end

local function keep(g, id, m)
  call('HSET', g .. 'm', id, cmsgpack.pack(m))
end

local policies = {}
local function policy_of(g)
  local rules = policies[g]
  if not rules then
    local packed = call('GET', g .. 'c')
    rules = packed and cmsgpack.unpack(packed) or {}
    policies[g] = rules
  end
  return rules
end

local function retention_of(g) return policy_of(g).retention or {} end

-- The seconds of a rule as ms. They are whole ms, which a fraction of binary digits may miss by a little.
local function in_ms(seconds) return math.floor(seconds * 1000 + 0.5) end

-- The length of a queue's leases, ms.
local function lease_of(rules) return in_ms(rules.lease or 60) end

-- A lease has ended: where the queue limits how many there are, somebody may start now.
local function slot_freed(list, g)
  if policy_of(g).concurrency then wake(list) end
end

-- Where another program keeps something else under the queue's name, an entry is refused before it changes anything: Redis
-- takes back nothing of what a script did before its failure, and a task would be in no list any more.
local function must_be_list(list) call('LLEN', list) end

-- A lease that has run out is nobody's, whether or not the sweeper has come by.
local function is_held(g, lease)
  local ends = call('ZSCORE', g .. 'l', lease)
  return ends and tonumber(ends) > now
end

local function ready_list(list, g, priority)
  return (priority or 0) == 0 and list or g .. priority
end

local function element(id, m)
  local generation = m and m.g or 0
  return generation == 0 and '\1' .. id or '\1' .. id .. ':' .. generation
end

-- Into the ready list: at the head (right) or the tail (left) of its priority. Since when a `new` one is ready, its id tells.
-- An element that comes to the tail again is a new one: whoever lists the tasks must not take it for the one seen at its former place.
local function make_ready(list, g, id, m, head, new)
  if not head and not new then m.g = (m.g or 0) + 1 end
  call(head and 'RPUSH' or 'LPUSH', ready_list(list, g, m.p), element(id, m))
  m.s, m.du = 'r', nil
  if not new then m.rs, m.rh = now, head or nil end
  keep(g, id, m)
  due(list, m.x or FAR)
  wake(list)
end

local function make_delayed(list, g, id, m, at)
  call('ZADD', g .. 'd', at, id)
  m.s, m.du = 'd', at
  keep(g, id, m)
  slot_freed(list, g)
  due(list, math.min(at, m.x or FAR))
end

local function lift_tombstone(g, priority)
  local field = 's' .. (priority or 0)
  if call('HINCRBY', g .. 'n', field, -1) <= 0 then call('HDEL', g .. 'n', field) end
end

-- The element of a ready task cannot be taken out of its list in O(1): it stays there as a tombstone of an old generation.
local function leave_tombstone(list, g, m)
  m.g = (m.g or 0) + 1
  call('HINCRBY', g .. 'n', 's' .. (m.p or 0), 1)
  due(list, now)
end

-- A plain task on its way to a client has no entry in {Q}m and looks ready. Cancelled then, it is no longer its lease's to
-- give back, and its tombstone lies in no list.
local function taken_away(g, m, lease)
  if not m or not m.g or (m.o and m.o.i == lease) then return false end
  lift_tombstone(g, m.p)
  return true
end

-- Such a task may be cancelled and forgotten as well before its lease ends: then only its tombstone is left.
local function is_forgotten(list, g, id)
  if call('HEXISTS', g .. 't', id) == 1 then return false end
  lift_tombstone(g)
  drained[list] = true
  return true
end

local function free_key(g, id, m)
  if m.k and call('HGET', g .. 'k', m.k) == id then call('HDEL', g .. 'k', m.k) end
end

local function tell_ended(list, id, m)
  if m.w then ended[#ended + 1] = list .. '\t' .. id end
end

-- What is known of a task has 64 KiB at most, its result aside. All but its history has 16 KiB at most; of the history the newest twenty
-- attempts are kept, or as many of them as there is room for.
local MOST_ATTEMPTS, MOST_BYTES_OF_THEM = 20, 49152

local function bytes_of(attempt)
  local bytes = 100 + #(attempt.w or '') + #(attempt.r or '')
  if type(attempt.e) ~= 'table' then return bytes end
  for _, text in pairs(attempt.e) do bytes = bytes + 16 + (type(text) == 'string' and #text or 0) end
  return bytes
end

-- The end of an attempt, as its history tells it.
local function remember(m, reason, err)
  local h = m.h or {}
  local o = m.o or {}
  h[#h + 1] = {a = m.a or 0, w = o.w, f = o.f, t = now, r = reason, e = err}
  if #h > 1 then
    local kept, bytes = {}, 0
    for i = #h, math.max(1, #h - MOST_ATTEMPTS + 1), -1 do
      bytes = bytes + bytes_of(h[i])
      if bytes > MOST_BYTES_OF_THEM and #kept > 0 then break end
      table.insert(kept, 1, h[i])
    end
    h = kept
  end
  m.h, m.o = h, nil
end

-- When a task that died at this moment is forgotten.
local function dead_until(g, m, died)
  return died + math.max(in_ms(retention_of(g).dead or 2592000), m.w and FOR_WHO_WAITS or 0)
end

-- Beyond the queue's limit of the dead the oldest go, so many a call at most. How many are still over.
local MOST_DEAD = 100000
local function trim_dead(list, g, most)
  local over = call('ZCARD', g .. 'x') - (retention_of(g).dead_max or MOST_DEAD)
  if over <= 0 then return 0 end
  local gone = call('ZRANGE', g .. 'x', 0, math.min(over, most) - 1)
  call('ZREM', g .. 'x', unpack(gone))
  call('HDEL', g .. 't', unpack(gone))
  call('HDEL', g .. 'm', unpack(gone))
  drained[list] = true
  return over - #gone
end

local function bury(list, g, id, m, reason, err)
  local forget = dead_until(g, m, now)
  call('ZADD', g .. 'x', score(forget), id)
  m.s, m.y, m.z, m.er, m.du = 'x', reason, now, err or m.er, nil
  free_key(g, id, m)
  keep(g, id, m)
  tell_ended(list, id, m)
  slot_freed(list, g)
  due(list, forget)
  -- Where there are too many, each one that comes makes room for itself and lets one more go.
  trim_dead(list, g, 2)
end

-- A number from 0 to 1 for this task now. Not by math.random, which begins anew, with the same seed, in every script.
local function chance(id)
  return tonumber(string.sub(redis.sha1hex(id .. clock[1] .. clock[2]), 1, 8), 16) / 4294967296
end

-- The wait before the next attempt: a tenth more or less, for each task another, and not all at the cap.
local LONGEST_BACKOFF = 3600000
local function backoff_ms(g, id, m)
  local wait = (m.b or in_ms(policy_of(g).backoff or 10)) * 2 ^ math.min((m.a or 1) - 1, 20)
  local least, most = 0.9 * math.min(wait, LONGEST_BACKOFF), math.min(1.1 * wait, LONGEST_BACKOFF)
  return math.floor(least + (most - least) * chance(id))
end

local function attempts_left(g, m)
  return (m.a or 0) < (m.n or policy_of(g).attempts or 25)
end

-- A lease ran out or its holder was lost: counted, first time back to the head, later after the backoff.
local function lapse(list, g, id, m, reason)
  if not m.o then m.a = (m.a or 0) + 1 end
  m.q = (m.q or 0) + 1
  local lease = m.o and m.o.i
  remember(m, reason)
  m.ll = lease
  if m.c then return bury(list, g, id, m, 'cancelled') end
  if not attempts_left(g, m) then return bury(list, g, id, m, reason) end
  if m.q == 1 then return make_ready(list, g, id, m, true) end
  return make_delayed(list, g, id, m, now + backoff_ms(g, id, m))
end
