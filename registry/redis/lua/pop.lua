-- uses: base, life, take, replay
-- rarely: pop_group, bury, held_back
-- Pop: the oldest ready task of the highest priority is handed out under a lease; a pop without lease holds a hidden
-- one.
-- KEYS: the list of each entry.
-- ARGV per entry: nonce (the lease id is id-nonce), length of the lease in ms (0: the task's own), options ('' or
--   PopOptions).
-- Reply per entry: {0, id, payload, attempt, since, lease ms, trace} · {0, …, 1 replayed, list, nonce} · {1}
--   nothing · {2} ask again · {3, code[, ms]} paused or limited, for ms · {4} lease_required · {5} another request's
--   key · {6|8, text}. `since`: when it became ready, ms; 0 at its push, which its id tells; -1 for a raw element and a
--   replay.
if too_late() then return {'LATE', now} end

local function pop(list, nonce, lease_ms, opts)
  if not opts then return pop_one(list, nonce, lease_ms) end
  if opts.n then call('PUBLISH', SPACE .. 'worker', PROCESS .. '\n' .. opts.n .. '\n' .. opts.w) end
  local memory = opts.ik and '{' .. list .. '}i:pop:' .. opts.ik
  opts.mk = memory
  local held = memory and replay(memory, opts.ih, opts.k)
  if held then return held[1] end
  if held == false then return {5} end
  if opts.z then return {1} end
  local reply = pop_one(list, nonce, lease_ms, opts)
  if memory and reply[1] == 0 then
    remember_pop(memory, opts.ih, {{0, reply[2], 0, 0, 0, reply[6], 0, 0, list, nonce}})
  end
  return reply
end

-- Pops of one queue are taken together, except those that are remembered or end another poll.
local MAX_BYTES = 1048576
local replies, spent, options, groups, lists, count = {}, 0, {}, {}, {}, {}
for _, list in ipairs(KEYS) do
  if not count[list] then lists[#lists + 1] = list end
  count[list] = (count[list] or 0) + 1
end
for i = 1, #KEYS do
  local list, encoded = KEYS[i], ARGV[3 + i * 3]
  local opts = encoded ~= '' and cmsgpack.unpack(encoded) or nil
  options[i] = opts
  if count[list] > 1 and not (opts and (opts.ik or opts.n)) then
    local group = groups[list] or {entries = {}, asks = {}}
    groups[list] = group
    group.entries[#group.entries + 1] = i
    group.asks[#group.asks + 1] = {ARGV[1 + i * 3], tonumber(ARGV[2 + i * 3]), opts}
  end
end

local function pop_group(list, group)
  local at = 1
  while at <= #group.asks and spent <= MAX_BYTES do
    local given = pop_together(list, group.asks, at, MAX_BYTES - spent + 1)
    if #given == 0 then return end
    for j, reply in ipairs(given) do
      replies[group.entries[at + j - 1]] = reply
      spent = spent + #reply[3]
    end
    at = at + #given
  end
end

if #lists > 1 then load_plain(lists) end
for list, group in pairs(groups) do
  -- If this fails, the entries are taken one by one below, and fail there with a reply.
  if #group.asks > 1 then pcall(pop_group, list, group) end
end
for i = 1, #KEYS do
  local at = 1 + i * 3
  if not replies[i] and spent > MAX_BYTES then replies[i] = {2} end
  if not replies[i] then
    local reply = reply_of(pop, KEYS[i], ARGV[at], tonumber(ARGV[at + 1]), options[i])
    if reply[1] == 0 then spent = spent + #reply[3] end
    replies[i] = reply
  end
end
return finish(replies)
