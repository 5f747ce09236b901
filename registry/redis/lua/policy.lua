-- uses: base, life, finishing
-- Policy: change some of a queue's rules.
-- KEYS: the list of each entry. ARGV per entry: msgpack {set {rule -> value}, reset {rule, …}, t only trim on}.
-- Reply per entry: {0, msgpack of all rules, how many of the done are still over a new limit} · {8, text}.
local function change(list, packed)
  local g = '{' .. list .. '}'
  must_be_list(list)
  local o = cmsgpack.unpack(packed)
  local rules = policy_of(g)
  if o.t then return {0, cmsgpack.pack(rules), trim(list, g)} end
  for rule, value in pairs(o.set or {}) do rules[rule] = value end
  local keeps = (o.set or {}).retention
  for _, rule in ipairs(o.reset or {}) do
    rules[rule] = nil
    keeps = keeps or rule == 'retention'
  end
  if next(rules) == nil then
    call('DEL', g .. 'c')
    drained[list] = true
  else
    call('SET', g .. 'c', cmsgpack.pack(rules))
    due(list, FAR)
  end
  if not rules.rate then call('HDEL', g .. 'n', 'starts', 'started', 'since') end
  -- The sweeper looks what has outlived the new time.
  if keeps then due(list, now) end
  local left = keeps and trim(list, g) or 0
  wake(list)
  return {0, cmsgpack.pack(rules), left}
end

may_grow()
local replies = {}
for i = 1, #KEYS do
  local ok, reply = pcall(change, KEYS[i], ARGV[3 + i])
  replies[i] = ok and reply or refusal(reply)
end
return finish(replies)
