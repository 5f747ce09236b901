-- uses: base, life, each
-- Order: what an operator tells a worker: a member 'ORDER\nWORKER' of a sorted set, by the end of the order. A worker
-- with nothing there may run.
-- KEYS: the sorted set. ARGV per entry: worker, 'run', 'quiet' or 'stop', ms that the order stands.
-- Reply per entry: {0, 1 where something changed, else 0} · {8, text}.
local MAX_ORDERS = 10000

local function give(key, worker, order, ms)
  local changed = call('ZREM', key, 'quiet\n' .. worker, 'stop\n' .. worker)
  if order ~= 'run' then
    -- Also when Redis is full: the number of orders is bounded.
    may_grow()
    call('ZADD', key, score(now + ms), order .. '\n' .. worker)
    changed = 1
  end
  call('ZREMRANGEBYSCORE', key, '-inf', score(now))
  call('ZREMRANGEBYRANK', key, 0, -MAX_ORDERS - 1)
  if changed > 0 then call('PUBLISH', SPACE .. 'orders', '-\n') end
  return {0, changed}
end

return finish(reply_each(give, 3))
