-- uses: base
-- What the policy of a queue allows to start, and when. `q` is a queue in this call: `tag` begins its keys, `rules` is
-- its policy.
-- A rate allows `max_starts` starts in any period of `period` ms. A whole rate allows that many in 1000 ms. A fraction
-- allows the next whole number in a period that is longer in proportion, so no second has more than that number either.
-- The field `starts` of {Q}n holds the times of the starts, {ms, how many, ms, how many, …}. Starts within about a
-- hundredth of the period are one pair, at the time of the last one.
local GRAINS = 100

local function load_starts(q)
  local rate = q.rules.rate
  q.max_starts = math.ceil(rate)
  q.period = math.ceil(q.max_starts * 1000 / rate)
  q.starts, q.started = {}, 0
  local encoded = call('HGET', q.tag .. 'n', 'starts')
  local stored = encoded and cmsgpack.unpack(encoded) or {}
  for n = 1, #stored, 2 do
    local at, count = stored[n], stored[n + 1]
    -- Starts in the future are dropped: a clock that was set back must not lengthen a period.
    if at > now - q.period and at <= now then
      q.starts[#q.starts + 1], q.starts[#q.starts + 2] = at, count
      q.started = q.started + count
    end
  end
end

local function remember_start(q)
  local starts, grain = q.starts, math.max(1, math.floor(q.period / GRAINS))
  local last = #starts - 1
  if last > 0 and math.floor(starts[last] / grain) == math.floor(now / grain) then
    starts[last], starts[last + 1] = now, starts[last + 1] + 1
  else
    starts[last + 2], starts[last + 3] = now, 1
  end
  q.started, q.has_started = q.started + 1, true
end

-- When the next task may start: once enough earlier starts are older than the period.
local function next_start(q)
  local excess = q.started - q.max_starts
  for n = 1, #q.starts, 2 do
    excess = excess - q.starts[n + 1]
    if excess < 0 then return q.starts[n] + q.period end
  end
end

-- What may keep all tasks of a queue from starting, in the order of the reports.
local GATES, RATE = {'paused', 'concurrency_limited', 'rate_limited'}, 3

-- The first closed gate from number `from` on; nil for none.
local function closed_gate(q, from)
  local rules = q.rules
  if from == 1 and rules.paused and now < (rules.paused_until or FAR) then return 1 end
  if from <= 2 and rules.concurrency and call('ZCARD', q.tag .. 'l') >= rules.concurrency then return 2 end
  if from <= RATE and rules.rate then
    if not q.starts then load_starts(q) end
    if q.started >= q.max_starts then return RATE end
  end
end
