-- uses: base, life, enter, each
-- Schedule: change the record of a schedule and push a task for its tick, in one step, unless the schedule was changed
-- in the meantime.
-- KEYS: for each entry, the list that the task is pushed to.
-- ARGV per entry: the schedule's name, its record ('' for none), its next tick (ms, '' for none), its new record
--   ('' for none), its new next tick; and the tail of the id, payload and options (as for push) of a task. An empty
--   tail pushes nothing: the options ('' for none) are only checked.
-- Reply per entry: {0} changed · {0, the head of its id} changed, pushed · {0, id, 1} changed, a task with that key
--   exists · {1} it was changed meanwhile · {6, text} wrong type · {7, text} full · {8, text} refused · {9, n}
--   max_length · {12, ttl ms, delay ms} it would expire before it is due: nothing changed.
if too_late() then return {'LATE', now} end
local SCHEDULES, TICKS = SPACE .. 'schedules', SPACE .. 'ticks'

local function push_tick(list, id, payload, encoded)
  local tag = '{' .. list .. '}'
  local rules = policy_of(tag)
  if encoded ~= '' or rules.ttl then
    return push_one(list, tag, id, payload, encoded ~= '' and cmsgpack.unpack(encoded) or {}, rules)
  end
  if rules.max_length and length(list, tag) >= rules.max_length then return {9, rules.max_length} end
  call('LPUSH', list, element(id))
  call('HSET', tag .. 't', id, payload)
  due(list, FAR)
  wake(list)
  return STORED
end

-- The refusal of options with which each task would expire before it is due, as the rules of the queue are now.
local function never_due(tag, opts)
  local ttl = policy_of(tag).ttl
  if ttl and not opts.x then opts.x = in_ms(ttl) end
  return expires_first(opts)
end

local function change(list, name, was, at, becomes, following, tail, payload, options)
  if (call('HGET', SCHEDULES, name) or '') ~= was then return {1} end
  if tonumber(call('ZSCORE', TICKS, name) or '') ~= tonumber(at) then return {1} end
  local reply = {0}
  if tail ~= '' then
    reply = push_tick(list, STAMP .. tail, payload, options)
    if reply[1] ~= 0 then return reply end
  else
    local refused = options ~= '' and never_due('{' .. list .. '}', cmsgpack.unpack(options))
    if refused then return refused end
    if #becomes <= #was + 64 then may_grow() end
  end
  if becomes == '' then
    call('HDEL', SCHEDULES, name)
  elseif becomes ~= was then
    call('HSET', SCHEDULES, name, becomes)
  end
  if following == '' then call('ZREM', TICKS, name) else call('ZADD', TICKS, following, name) end
  return reply
end

return finish(reply_each(change, 8))
