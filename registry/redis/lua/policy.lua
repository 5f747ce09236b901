-- uses: base, life, finishing, each
-- Policy: change some of a queue's rules.
-- KEYS: the list of each entry. ARGV per entry: PolicyChange.
-- Reply per entry: {0, the Policy, how many of the done and the dead are still over a new limit, from where the dead
--   are to be gone over or ''} · {8, text}.
local DEAD_A_CALL = 50

-- A new time counts for those that are dead already; one that is taken back lets nothing stay for longer than was said.
-- Where the next call goes on; '' at the end.
local function date_dead(list, g, place, shorter)
  local found = call('ZSCAN', g .. 'x', place, 'COUNT', DEAD_A_CALL)
  for i = 1, #found[2], 2 do
    local id, at = found[2][i], tonumber(found[2][i + 1])
    local m = known(g, id)
    local forgotten = m and m.z and dead_until(g, m, m.z)
    if forgotten and shorter then forgotten = math.min(forgotten, at) end
    if forgotten and forgotten <= now then
      call('ZREM', g .. 'x', id)
      forget(list, g, id)
    elseif forgotten and forgotten ~= at then
      call('ZADD', g .. 'x', score(forgotten), id)
      due(list, forgotten)
    end
  end
  return found[1] == '0' and '' or found[1]
end

local function trim_on(list, g, rules, place, shorter)
  local on = place ~= '' and date_dead(list, g, place, shorter) or ''
  return {0, cmsgpack.pack(rules), trim(list, g) + trim_dead(list, g, MOST_TRIMMED), on}
end

local function change(list, packed)
  local g = '{' .. list .. '}'
  must_be_list(list)
  local o = cmsgpack.unpack(packed)
  local rules = policy_of(g)
  if o.t then return trim_on(list, g, rules, o.x or '', o.y) end
  local said = o.set or {}
  local keeps = said.retention
  if said.paused ~= nil then rules.paused_until = nil end
  for rule, value in pairs(said) do rules[rule] = value end
  for _, rule in ipairs(o.reset or {}) do
    rules[rule] = nil
    keeps = keeps or rule == 'retention'
    if rule == 'paused' then rules.paused_until = nil end
  end
  if o.p then
    rules.paused, rules.paused_until = true, now + o.p
    due(list, rules.paused_until)
  end
  keep_policy(list, g, rules)
  if not rules.rate then call('HDEL', g .. 'n', 'starts', 'started', 'since') end
  wake(list)
  if not keeps then return {0, cmsgpack.pack(rules), 0, ''} end
  -- The sweeper looks what has outlived the new time.
  due(list, now)
  return trim_on(list, g, rules, '0', not said.retention)
end

may_grow()
return finish(reply_each(change, 1))
