-- uses: base, reading
-- Ready: the elements of a queue's ready lists in the order of delivery, behind one that was seen before. Reads only.
-- Tasks leave a list at its head, and join it at its tail or return to its head, so an element never comes nearer to
-- the tail. So the element that was seen is searched for from both of its former places; when it is gone, all in front
-- of it are gone too.
-- KEYS: the list. ARGV after the common three: priority, places from the head and from the tail and mark of the element
--   ('' for the head of the list), where its search continues ('' for a new search), elements at most, bytes of a
--   foreign element to show, text to look for in those ('' for none).
-- Reply: {0, {id or false, generation, beginning of a foreign element, priority, place from the head, place from the
--   tail, mark, length, 1 where the text was found}, …} · {1, where the search continues} · {6|8, text}.
local MAX_SEARCHED, SLACK, MAX_BYTES = 5000, 200, 262144

-- The place behind the element, from the head; 0 when it is gone; nil and where to continue when the search is not
-- complete.
local function place_behind(from, mark, head, tail, resume_at)
  local furthest = call('LLEN', from) - 1 - tail
  if furthest < 0 then return 0 end
  if resume_at == '' then
    -- Usually nothing has left the list, or nothing has been added.
    for _, place in ipairs({math.min(head, furthest), furthest}) do
      local e = call('LINDEX', from, -place - 1)
      if e and has_mark(e, mark) then return place + 1 end
    end
  end
  local upto = math.min(furthest, tonumber(resume_at) or furthest)
  local down = math.max(0, upto - MAX_SEARCHED + 1)
  local found
  each_from(from, down, upto - down + 1, function(e, place)
    if has_mark(e, mark) then found = place end
    return found
  end)
  if found then return found + 1 end
  if down == 0 then return 0 end
  -- Tasks put back at the head meanwhile move the element further from the head.
  return nil, down - 1 + SLACK
end

local function elements(list, first, mark, head, tail, resume_at, limit, shown, text)
  local tag, reply, bytes = '{' .. list .. '}', {0}, 0
  for p = first, 0, -1 do
    local from = p == 0 and list or tag .. p
    local at, on = 0, nil
    if mark ~= '' and p == first then
      at, on = place_behind(from, mark, head, tail, resume_at)
      if not at then return {1, on} end
    end
    local length = call('LLEN', from)
    each_from(from, at, limit - #reply + 1, function(e, place)
      local id, generation = parse_element(e)
      bytes = bytes + math.min(#e, shown)
      local hit = not id and text ~= '' and string.find(e, text, 1, true)
      reply[#reply + 1] = {
        id or false, generation or 0, id and '' or string.sub(e, 1, shown),
        p, place, length - 1 - place, mark_of(e), #e, hit and 1 or 0,
      }
      return bytes >= MAX_BYTES
    end)
    if #reply > limit or bytes >= MAX_BYTES then break end
  end
  return reply
end

return reply_of(
  elements, KEYS[1], tonumber(ARGV[4]), ARGV[7], tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[8], tonumber(ARGV[9]),
  tonumber(ARGV[10]), ARGV[11]
)
