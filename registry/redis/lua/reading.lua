-- uses: base
-- Reading a queue's ready lists from their heads, a limited piece at a time, because elements of other programs may
-- have any size.
local FEW, MANY, SMALL_BYTES = 8, 64, 65536

-- Call `each` with the elements of a ready list, from an offset behind its head on, until it returns true, `limit`
-- elements were read or the list ends. Returns how many were read. Large elements are read a few at a time.
local function each_from(list, offset, limit, each)
  local read, at_once = 0, FEW
  while read < limit do
    local count = math.min(at_once, limit - read)
    local elements = call('LRANGE', list, -(offset + read + count), -(offset + read + 1))
    local bytes = 0
    for i = #elements, 1, -1 do
      bytes, read = bytes + #elements[i], read + 1
      if each(elements[i], offset + read - 1) then return read end
    end
    if #elements < count then return read end
    at_once = bytes < SMALL_BYTES and math.min(2 * at_once, MANY) or FEW
  end
  return read
end

-- What an element is recognised by later: the whole of a task's short element; the length and the beginning of another
-- program's. Cursors show it to callers who may not see payloads: without the secret they could try out what it is of.
local secret
local function mark_of(e)
  if parse_element(e) then return string.sub(e, 2) end
  secret = secret or call('GET', SPACE .. 'session-secret') or ''
  return 'r' .. #e .. ':' .. redis.sha1hex(secret .. string.sub(e, 1, 1000))
end

local function has_mark(e, mark)
  if string.byte(mark) ~= 114 then return string.sub(e, 2) == mark and string.byte(e) == 1 end
  return tonumber(string.match(mark, '^r(%d+):')) == #e and mark_of(e) == mark
end
