-- uses: base, life, finishing
-- Confirm: the answer to a pop without lease has been written; its hidden lease ends and the task is done.
-- KEYS: the list of each entry. ARGV per entry: lease ids, separated by spaces.
-- Reply per entry: {n} how many of these leases were gone · {6|7|8, text} refused.
local replies, held = {}, {}

-- End the tasks of one queue, plain ones together.
local function end_all(list)
  local group = held[list]
  if not group then return end
  held[list] = nil
  local tag = '{' .. list .. '}'
  local records, plain = call('HMGET', tag .. 'm', unpack(group)), {}
  for i, id in ipairs(group) do
    local task = records[i] and cmsgpack.unpack(records[i])
    if not task then
      plain[#plain + 1] = id
    elseif task.s ~= 'e' then
      -- It is done already if it was cancelled during the hand-over, retried, and acknowledged by another worker.
      if task.s == 'x' then
        call('ZREM', tag .. 'x', id)
        lift_tombstone(tag, task.p)
      end
      make_done(list, tag, id, task, false, true)
    end
  end
  if #plain > 0 then
    -- Tasks that were cancelled and forgotten meanwhile have left only a tombstone.
    for _ = call('HDEL', tag .. 't', unpack(plain)) + 1, #plain do lift_tombstone(tag) end
    drained[list] = true
  end
end

-- Lua cannot pass more arguments than this to one command.
local AT_ONCE = 1000

local function confirm(list, leases)
  local key, gone = '{' .. list .. '}l', 0
  for lease, id in string.gmatch(leases, '(([^ -]+)[^ ]*)') do
    if call('ZREM', key, lease) == 1 then
      local group = held[list] or {}
      group[#group + 1] = id
      held[list] = group
      if #group == AT_ONCE then end_all(list) end
    else
      gone = gone + 1
    end
  end
  return {gone}
end

for i = 1, #KEYS do replies[i] = reply_of(confirm, KEYS[i], ARGV[3 + i]) end
for i, list in ipairs(KEYS) do
  local ok, e = pcall(end_all, list)
  if not ok then replies[i] = refusal(e) end
end
return finish(replies)
