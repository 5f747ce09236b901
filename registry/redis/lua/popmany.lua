-- uses: base, life, take, replay, each
-- rarely: pop_one
-- Pop many: up to a number of tasks from several queues at once, always leased.
-- KEYS: the first list of each entry.
-- ARGV per entry: nonce, length of the lease in ms (0: each task's own), PopOptions.
-- Reply per entry: {0, {0, id, payload, attempt, since, lease ms, trace, replayed, list, nonce}, …} · {1} · {2} ·
--   {3, code[, ms, list, …]} each list is limited for ms · {5} · {6|8, text}.
if too_late() then return {'LATE', now} end
local MAX_BYTES = 8388608

-- Most polls of many queues find nothing, so one command checks that first.
local function all_empty(lists)
  local keys = {}
  for n, list in ipairs(lists) do
    local tag = '{' .. list .. '}'
    keys[3 * n - 2], keys[3 * n - 1], keys[3 * n] = list, tag .. 'm', tag .. 'c'
  end
  return call('EXISTS', unpack(keys)) == 0
end

local function pop_many(first, nonce, lease_ms, encoded)
  local opts = cmsgpack.unpack(encoded)
  lease_ms = tonumber(lease_ms)
  opts.l = true
  if opts.n then call('PUBLISH', SPACE .. 'worker', PROCESS .. '\n' .. opts.n .. '\n' .. opts.w) end
  local memory = opts.ik and '{' .. first .. '}i:pops:' .. opts.ik
  opts.mk = memory
  local held = memory and replay(memory, opts.ih, opts.k)
  if held then return {0, unpack(held)} end
  if held == false then return {5} end
  if opts.z then return {1} end
  if all_empty(opts.q) then return {1} end
  local given, bytes, nothing, turn, finished = {}, 0, {1}, opts.s or 0, {}
  local open = #opts.q
  local fair, at = opts.s ~= nil, 0
  local asks, limited = {}, {3, 'rate_limited'}
  for j = 1, fair and #opts.q > 1 and 0 or opts.c do asks[j] = {nonce, lease_ms, opts} end
  while open > 0 and #given < opts.c and bytes < MAX_BYTES do
    local list = opts.q[(turn + at) % #opts.q + 1]
    if finished[list] then
      at = at + 1
    else
      -- In pcall: tasks already taken from other queues must be answered even if this queue fails.
      local ok, group = pcall(pop_together, list, asks, #given + 1, MAX_BYTES - bytes, #given > 0)
      for _, reply in ipairs(ok and group or {}) do
        reply[8], reply[9], reply[10] = 0, list, nonce
        given[#given + 1] = reply
        bytes = bytes + #reply[3]
      end
      if not ok or #group == 0 then
        local reply = reply_of(pop_one, list, nonce, lease_ms, opts, #given > 0 and MAX_BYTES - bytes)
        if reply[1] == 0 then
          reply[8], reply[9], reply[10] = 0, list, nonce
          given[#given + 1] = reply
          bytes = bytes + #reply[3]
          if fair then at = at + 1 end
        else
          if reply[1] == 9 then break end
          -- {2} wins finished the replies of other queues: there may be tasks behind the tombstones that were cleared.
          if reply[1] ~= 1 and nothing[1] ~= 2 then nothing = reply end
          if reply[1] == 3 and reply[3] then limited[#limited + 1], limited[#limited + 2] = reply[3], list end
          finished[list] = true
          open = open - 1
        end
      end
    end
  end
  if #given == 0 then return nothing[1] == 3 and #limited > 2 and limited or nothing end
  if memory then remember_pop(memory, opts.ih, given) end
  return {0, unpack(given)}
end

return finish(reply_each(pop_many, 3))
