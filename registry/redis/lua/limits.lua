-- uses: base
-- What a queue's policy lets start, and when. `q` is a queue in this call: `tag` begins its keys, `rules` is its
-- policy.
-- A rate allows `most` starts in any stretch of `stretch` ms. A whole rate: that many in 1000 ms. A fraction: the next
-- whole number, in a stretch that is longer in proportion, so no second has more than that number either. {Q}n's field
-- `starts` holds when they were, {ms, how many, ms, how many, …}; starts within about a hundredth of the stretch are
-- one pair, at the time of the last.
local GRAINS = 100

local function load_starts(q)
  local rate = q.rules.rate
  q.most = math.ceil(rate)
  q.stretch = math.ceil(q.most * 1000 / rate)
  q.starts, q.started = {}, 0
  local encoded = call('HGET', q.tag .. 'n', 'starts')
  local stored = encoded and cmsgpack.unpack(encoded) or {}
  for n = 1, #stored, 2 do
    local at, count = stored[n], stored[n + 1]
    -- Starts in the future are dropped: a clock that was set back must not lengthen a stretch.
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

-- When the next task may start: once enough earlier starts have left the stretch.
local function next_start(q)
  local excess = q.started - q.most
  for n = 1, #q.starts, 2 do
    excess = excess - q.starts[n + 1]
    if excess < 0 then return q.starts[n] + q.stretch end
  end
end

-- What may keep all of a queue's tasks from starting, in the order of reporting.
local GATES, RATE = {'paused', 'concurrency_limited', 'rate_limited'}, 3

-- The first gate, from number `from` on, that is shut now; nil for none.
local function closed_gate(q, from)
  local rules = q.rules
  if from == 1 and rules.paused and now < (rules.paused_until or FAR) then return 1 end
  if from <= 2 and rules.concurrency and call('ZCARD', q.tag .. 'l') >= rules.concurrency then return 2 end
  if from <= RATE and rules.rate then
    if not q.starts then load_starts(q) end
    if q.started >= q.most then return RATE end
  end
end
