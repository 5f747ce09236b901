-- uses: base, life, finishing, each
-- Policy: change some of a queue's rules.
-- KEYS: the list of each entry. ARGV per entry: PolicyChange.
-- Reply per entry: {0, the Policy, how many of the done and the dead are still over a new limit, where the next call
--   goes on with the dead, or ''} · {8, text}.
local DEAD_PER_CALL = 50

-- Apply a new retention to the tasks that are dead already; with `shorter`, because a rule was reset, none stays for
-- longer than before. Returns where the next call goes on; '' at the end.
local function update_dead(list, tag, place, shorter)
  local found = call('ZSCAN', tag .. 'x', place, 'COUNT', DEAD_PER_CALL)
  for i = 1, #found[2], 2 do
    local id, at = found[2][i], tonumber(found[2][i + 1])
    local task = load_task(tag, id)
    local forgotten = task and task.z and dead_until(tag, task, task.z)
    if forgotten and shorter then forgotten = math.min(forgotten, at) end
    if forgotten and forgotten <= now then
      call('ZREM', tag .. 'x', id)
      forget(list, tag, id)
    elseif forgotten and forgotten ~= at then
      call('ZADD', tag .. 'x', score(forgotten), id)
      due(list, forgotten)
    end
  end
  return found[1] == '0' and '' or found[1]
end

local function continue_trim(list, tag, rules, place, shorter)
  local on = place ~= '' and update_dead(list, tag, place, shorter) or ''
  return {0, cmsgpack.pack(rules), trim(list, tag) + trim_dead(list, tag, MAX_TRIMMED), on}
end

local function change(list, encoded)
  local tag = '{' .. list .. '}'
  check_is_list(list)
  local opts = cmsgpack.unpack(encoded)
  local rules = policy_of(tag)
  if opts.t then return continue_trim(list, tag, rules, opts.x or '', opts.y) end
  local changes = opts.set or {}
  local changes_retention = changes.retention
  if changes.paused ~= nil then rules.paused_until = nil end
  for rule, value in pairs(changes) do rules[rule] = value end
  for _, rule in ipairs(opts.reset or {}) do
    rules[rule] = nil
    changes_retention = changes_retention or rule == 'retention'
    if rule == 'paused' then rules.paused_until = nil end
  end
  if opts.p then
    rules.paused, rules.paused_until = true, now + opts.p
    due(list, rules.paused_until)
  end
  save_policy(list, tag, rules)
  if not rules.rate then call('HDEL', tag .. 'n', 'starts', 'started', 'since') end
  wake(list)
  if not changes_retention then return {0, cmsgpack.pack(rules), 0, ''} end
  -- The sweeper removes what has outlived the new time.
  due(list, now)
  return continue_trim(list, tag, rules, '0', not changes.retention)
end

may_grow()
return finish(reply_each(change, 1))
