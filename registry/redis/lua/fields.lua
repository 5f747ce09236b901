-- uses: base
-- Fields: the payloads and records of some tasks, of as many as a limit in bytes allows, at least of one. Reads only.
-- KEYS: the list. ARGV after the common three: bytes to read at most, bytes of a payload to show (-1: payloads are not
--   read), text to look for ('' for none), the ids.
-- Reply: {0, ids looked at, bytes read, {id, payload or its beginning, its length, record or false, 1 where the payload
--   or the id holds the text}, …}; tasks that are gone are left out, and so are those that do not contain the text ·
--   {6|8, text}.
local function holds(value, text) return string.find(value, text, 1, true) ~= nil end

local function read(tag, limit, shown, text)
  local reply, bytes, examined = {0, 0, 0}, 0, 0
  for i = 7, #ARGV do
    local id, payload = ARGV[i], ''
    if shown < 0 then
      if call('HEXISTS', tag .. 't', id) == 0 then payload = nil end
    else
      payload = call('HGET', tag .. 't', id)
    end
    if payload then
      local encoded = call('HGET', tag .. 'm', id)
      local hit = text ~= '' and (holds(payload, text) or holds(id, text))
      if text == '' or hit or (encoded and holds(encoded, text)) then
        reply[#reply + 1] = {id, string.sub(payload, 1, math.max(shown, 0)), #payload, encoded, hit and 1 or 0}
      end
      bytes = bytes + #payload + (encoded and #encoded or 0)
    end
    examined = examined + 1
    if bytes >= limit then break end
  end
  reply[2], reply[3] = examined, bytes
  return reply
end

return reply_of(read, '{' .. KEYS[1] .. '}', tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6])
