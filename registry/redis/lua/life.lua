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

-- A call that reads much of what is known of tasks keeps Redis from everybody: it stops, and its other entries go with
-- the next one.
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

-- Where another program keeps something else under the queue's name, an entry is refused before it changes anything:
-- Redis takes back nothing of what a script did before its failure, and a task would be in no list any more.
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

-- Into the ready list: at the head (right) or the tail (left) of its priority. Since when a `new` one is ready, its id
-- tells.
-- An element that comes to the tail again is a new one: whoever lists the tasks must not take it for the one seen at
-- its former place.
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

-- The element of a ready task cannot be taken out of its list in O(1): it stays there as a tombstone of an old
-- generation.
local function leave_tombstone(list, g, m)
  m.g = (m.g or 0) + 1
  call('HINCRBY', g .. 'n', 's' .. (m.p or 0), 1)
  due(list, now)
end

local function free_key(g, id, m)
  if m.k and call('HGET', g .. 'k', m.k) == id then call('HDEL', g .. 'k', m.k) end
end

local function tell_ended(list, id, m)
  if m.w then ended[#ended + 1] = list .. '\t' .. id end
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
