-- uses: base, life, take
-- How many of the answers that gave a lease it remembers.
local MAX_ANSWERS = 20

-- Remember the leases of a pop: a repeat with the same Idempotency-Key gets those again that are still held.
local function remember_pop(memory, fingerprint, given)
  local longest, leases = 0, {}
  for _, one in ipairs(given) do
    longest = math.max(longest, one[6])
    leases[#leases + 1] = {one[9], one[2] .. '-' .. one[10]}
  end
  call('SET', memory, cmsgpack.pack({p = fingerprint, l = leases}), 'PX', longest)
end

-- The tasks of the earlier pop that are still held; nil for no earlier pop or none held; false: another request had
-- this key.
local function replay(memory, fingerprint, answer)
  local encoded = call('GET', memory)
  if not encoded then return nil end
  local seen = cmsgpack.unpack(encoded)
  if seen.p ~= fingerprint then return false end
  local held = {}
  for _, pair in ipairs(seen.l) do
    local list, lease = pair[1], pair[2]
    local tag = '{' .. list .. '}'
    local ends = call('ZSCORE', tag .. 'l', lease)
    if ends and tonumber(ends) > now then
      local id, nonce = string.match(lease, '^([^-]*)-(.*)$')
      local task = load_task(tag, id)
      may_grow()
      task.o.k[#task.o.k + 1] = answer
      if #task.o.k > MAX_ANSWERS then table.remove(task.o.k, 1) end
      save_task(tag, id, task)
      local payload = call('HGET', tag .. 't', id)
      local trace = task.tp and trace_of(task) or false
      held[#held + 1] = {0, id, payload, task.a, -1, tonumber(ends) - now, trace, 1, list, nonce}
    end
  end
  return #held > 0 and held or nil
end
