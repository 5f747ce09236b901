-- uses: base, life, enter
-- rarely: push_one
-- Push: a new task becomes ready, or delayed.
-- KEYS: the list of each entry.
-- ARGV per entry: the tail of its id, payload, options ('' or PushOptions).
-- Reply per entry: {0, the head of its id} stored · {0, id, 1} a task with that key exists · {0, id, 2} replayed ·
--   {0, id, 3} both · {5} Idempotency-Key of another request · {6, text} wrong type · {7, text} full · {8, text}
--   refused · {9, n} max_length · {12, ttl ms, delay ms} it would expire before it is due.
if too_late() then return {'LATE', now} end

local replies, rules_of, plain, NO_RULES = {}, {}, {}, {}
local count = {}
for _, list in ipairs(KEYS) do count[list] = (count[list] or 0) + 1 end

-- Load the rules of all queues at once; most have none.
local function load_rules()
  local keys = {}
  for i, list in ipairs(KEYS) do keys[i] = '{' .. list .. '}c' end
  local encoded = call('MGET', unpack(keys))
  for i, list in ipairs(KEYS) do
    rules_of[list] = rules_of[list] or (encoded[i] and cmsgpack.unpack(encoded[i])) or NO_RULES
  end
end

-- After `pushed` plain tasks were pushed to a list that now has this length.
local function entered(list, tag, length_now, pushed)
  -- Raw elements of other programs do not put the queue into the index: our first tasks behind them do.
  if length_now == pushed or call('HLEN', tag .. 't') == pushed then due(list, FAR) end
  wake(list)
end

local function join(group, i, id, payload)
  local n = group.n
  group.entries[n + 1], group.elements[n + 1] = i, '\1' .. id
  group.fields[2 * n + 1], group.fields[2 * n + 2] = id, payload
  group.n = n + 1
end

-- Plain tasks of one queue enter it together: two commands for all of them.
local function enter_plain(list)
  local group = plain[list]
  if not group then return end
  plain[list] = nil
  local tag = '{' .. list .. '}'
  local ok, e = pcall(function()
    local n = call('LPUSH', list, unpack(group.elements))
    call('HMSET', tag .. 't', unpack(group.fields))
    entered(list, tag, n, group.n)
  end)
  local reply = ok and STORED or refusal(e)
  for _, i in ipairs(group.entries) do replies[i] = reply end
end

local function push(i, list, id, payload, options)
  local tag = '{' .. list .. '}'
  local rules = rules_of[list]
  if options ~= '' or rules.ttl then
    enter_plain(list)
    return push_one(list, tag, id, payload, options ~= '' and cmsgpack.unpack(options) or {}, rules)
  end
  if rules.max_length and length(list, tag) >= rules.max_length then return {9, rules.max_length} end
  if count[list] == 1 then
    local n = call('LPUSH', list, '\1' .. id)
    call('HSET', tag .. 't', id, payload)
    entered(list, tag, n, 1)
    return STORED
  end
  plain[list] = {n = 0, entries = {}, elements = {}, fields = {}}
  join(plain[list], i, id, payload)
  -- Whether the next push fits depends on the length now.
  if rules.max_length then enter_plain(list) end
end

if #KEYS > 0 then load_rules() end
for i = 1, #KEYS do
  local at, list = 1 + i * 3, KEYS[i]
  local group = plain[list]
  if group and ARGV[at + 2] == '' then
    join(group, i, STAMP .. ARGV[at], ARGV[at + 1])
  else
    -- nil for an entry that waits for the others of its queue.
    local reply = reply_of(push, i, list, STAMP .. ARGV[at], ARGV[at + 1], ARGV[at + 2])
    if reply then replies[i] = reply end
  end
end
for _, list in ipairs(KEYS) do enter_plain(list) end
return finish(replies)
