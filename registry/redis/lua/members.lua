-- uses: base
-- Reading a queue's sorted set from a place on. The place stays valid when members are added or removed.

-- The order in which Redis sorts members of equal score. Lua's own comparison depends on the server's locale.
local function comes_before(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end

-- How many members have a smaller score, or the same score and a smaller name; and whether the member itself exists.
local function rank_of(key, score, member)
  local current = call('ZSCORE', key, member)
  if current and tonumber(current) == tonumber(score) then return call('ZRANK', key, member), true end
  local low = call('ZCOUNT', key, '-inf', '(' .. score)
  local high = low + call('ZCOUNT', key, score, score)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if comes_before(call('ZRANGE', key, middle, middle)[1], member) then low = middle + 1 else high = middle end
  end
  return low, false
end

-- The members behind a place: {0, member, score, …}.
local function members(list, kind, down, score, member, limit)
  local key, from = '{' .. list .. '}' .. kind, 0
  if score ~= '' then
    local rank, exists = rank_of(key, score, member)
    from = down and call('ZCARD', key) - rank or rank + (exists and 1 or 0)
  end
  local found = call(down and 'ZREVRANGE' or 'ZRANGE', key, from, from + limit - 1, 'WITHSCORES')
  table.insert(found, 1, 0)
  return found
end
