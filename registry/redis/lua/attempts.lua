-- uses: base, life, history
-- What comes after an attempt that went wrong.

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
