-- uses: base, life, history
-- What follows a failed attempt.

-- A random number from 0 to 1 for this task now. Not from math.random, which starts with the same seed in every script.
local function random_fraction(id)
  return tonumber(string.sub(redis.sha1hex(id .. clock[1] .. clock[2]), 1, 8), 16) / 4294967296
end

-- The wait before the next attempt, up to a tenth more or less at random; at the cap only less, so that not all wait
-- equally long.
local LONGEST_BACKOFF = 3600000
local function backoff_ms(tag, id, task)
  local wait = (task.b or in_ms(policy_of(tag).backoff or BACKOFF)) * 2 ^ math.min((task.a or 1) - 1, 20)
  local shortest, longest = 0.9 * math.min(wait, LONGEST_BACKOFF), math.min(1.1 * wait, LONGEST_BACKOFF)
  return math.floor(shortest + (longest - shortest) * random_fraction(id))
end

local function attempts_left(tag, task)
  return (task.a or 0) < (task.n or policy_of(tag).attempts or ATTEMPTS)
end

-- Whether as many different workers as the queue allows have died on the task since its push or its last retry, as far
-- as its history reaches. Workers without a name count as one.
local POISON = 3
local function is_poison(tag, task)
  local allowed = policy_of(tag).poison or POISON
  if allowed == 0 then return false end
  -- A retry grants `nn` attempts on top of those made by then.
  local made = task.nn and task.n and task.n - task.nn or 0
  local seen, count = {}, 0
  for _, attempt in ipairs(task.h) do
    local worker = attempt.w or ''
    if attempt.r == 'lease_expired' and attempt.a > made and not seen[worker] then
      seen[worker], count = true, count + 1
    end
  end
  return count >= allowed
end

-- How many tasks of each queue this call has made dead as poison.
local poisoned = {}

-- A lease ran out or its holder was lost. The lapse is counted; after the first one the task goes back to the head,
-- after later ones it waits for the backoff.
local function lapse(list, tag, id, task, reason)
  if not task.o then task.a = (task.a or 0) + 1 end
  task.q = (task.q or 0) + 1
  local lease = task.o and task.o.i
  remember(task, reason)
  task.ll = lease
  if task.c then return bury(list, tag, id, task, 'cancelled') end
  if reason == 'lease_expired' and is_poison(tag, task) then
    poisoned[list] = (poisoned[list] or 0) + 1
    return bury(list, tag, id, task, 'poison')
  end
  if not attempts_left(tag, task) then return bury(list, tag, id, task, reason) end
  if task.q == 1 then return make_ready(list, tag, id, task, true) end
  return make_delayed(list, tag, id, task, now + backoff_ms(tag, id, task))
end
