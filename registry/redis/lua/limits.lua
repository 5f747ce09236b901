-- uses: base
-- What a queue's policy lets start, and when. `q` is a queue in this call: `tag` what its keys begin with, `rules` its
-- policy.
-- A rate: so many starts in each stretch of so many ms, wherever it begins: a second's, and where that is a fraction
-- the next whole number, in so much longer a stretch: then no second has more than that number either. {Q}n's field
-- `starts` holds when they were, {ms, how many, ms, how many, …}; those of about a hundredth of the stretch are one, at
-- the time of the last.
local GRAINS = 100

local function recall_starts(q)
  local rate = q.rules.rate
  q.most = math.ceil(rate)
  q.stretch = math.ceil(q.most * 1000 / rate)
  q.starts, q.started = {}, 0
  local packed = call('HGET', q.tag .. 'n', 'starts')
  local known_starts = packed and cmsgpack.unpack(packed) or {}
  for n = 1, #known_starts, 2 do
    local at, count = known_starts[n], known_starts[n + 1]
    -- A clock that was set back must not make a stretch last.
    if at > now - q.stretch and at <= now then
      q.starts[#q.starts + 1], q.starts[#q.starts + 2] = at, count
      q.started = q.started + count
    end
  end
end

local function remember_start(q)
  local starts, grain = q.starts, math.max(1, math.floor(q.stretch / GRAINS))
  local last = #starts - 1
  if last > 0 and math.floor(starts[last] / grain) == math.floor(now / grain) then
    starts[last], starts[last + 1] = now, starts[last + 1] + 1
  else
    starts[last + 2], starts[last + 3] = now, 1
  end
  q.started, q.has_started = q.started + 1, true
end

-- When the next may start: enough of those before it are out of the stretch.
local function next_start(q)
  local over = q.started - q.most
  for n = 1, #q.starts, 2 do
    over = over - q.starts[n + 1]
    if over < 0 then return q.starts[n] + q.stretch end
  end
end

-- What may keep all of a queue's tasks from starting, in the order in which it is told.
local GATES, RATE = {'paused', 'concurrency_limited', 'rate_limited'}, 3

-- The first gate, from one of them on, that is shut now; nil for none.
local function shut_gate(q, from)
  local rules = q.rules
  if from == 1 and rules.paused and now < (rules.paused_until or FAR) then return 1 end
  if from <= 2 and rules.concurrency and call('ZCARD', q.tag .. 'l') >= rules.concurrency then return 2 end
  if from <= RATE and rules.rate then
    if not q.starts then recall_starts(q) end
    if q.started >= q.most then return RATE end
  end
end
