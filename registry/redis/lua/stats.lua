-- uses: base
-- Stats: add to what the charts show. Each step of time, of several lengths, is a hash: label -> index, number, index,
-- number, … in msgpack (registry/queue/stats.py says what the indexes mean). The label '' has the sums over all queues;
-- it is there in each step in which any daemon ran.
-- KEYS: none. ARGV after the common three: how long ago it was counted, ms; the id of the process; the number of this
--   call, '' for one that only says that a daemon runs; the lengths of the steps, each with how long to keep it, s, in
--   msgpack; then label, numbers in msgpack, and so on.
-- Reply: 1 · 0 this call was carried out before.
local MAX_LABELS, OTHER = 202, 'other'
-- The largest of these counts, not their sum: oldest age, ready.
local LARGEST = {[5] = true, [6] = true}
-- The number of a process's last call is remembered for this long, s.
local REMEMBERED = 86400

-- Also when Redis is full: the size is bounded, and that is when somebody looks at the charts.
may_grow()
local last = SPACE .. 'stats:last:' .. ARGV[5]
if ARGV[6] ~= '' then
  if tonumber(ARGV[6]) <= tonumber(call('GET', last) or 0) then return 0 end
  call('SET', last, ARGV[6], 'EX', REMEMBERED)
end

local function add(key, label, numbers)
  local stored = call('HGET', key, label)
  if not stored and label ~= OTHER and call('HLEN', key) >= MAX_LABELS then
    label = OTHER
    stored = call('HGET', key, label)
  end
  local sums, place = stored and stored ~= '' and cmsgpack.unpack(stored) or {}, {}
  for i = 1, #sums, 2 do place[sums[i]] = i + 1 end
  for i = 1, #numbers, 2 do
    local index, number = numbers[i], numbers[i + 1]
    local at = place[index]
    if not at then
      sums[#sums + 1], sums[#sums + 2] = index, number
    elseif LARGEST[index] then
      sums[at] = math.max(sums[at], number)
    else
      sums[at] = sums[at] + number
    end
  end
  call('HSET', key, label, cmsgpack.pack(sums))
end

local lengths, at = cmsgpack.unpack(ARGV[7]), math.max(0, math.floor((now - ARGV[4]) / 1000))
for i = 1, #lengths, 2 do
  local key = string.format('%sstats:%d:%.0f', SPACE, lengths[i], at - at % lengths[i])
  if call('HSETNX', key, '', '') == 1 then call('EXPIRE', key, lengths[i + 1]) end
  for n = 8, #ARGV, 2 do add(key, ARGV[n], cmsgpack.unpack(ARGV[n + 1])) end
end
return 1
