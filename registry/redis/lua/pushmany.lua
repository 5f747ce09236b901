-- uses: base, life, enter, each
-- Push many: all of a batch, or none.
-- KEYS: the list of each entry.
-- ARGV per entry: msgpack {tails of ids, payloads}, or {tails, the head of the ids} of what `stage` stored; options (''
--   or PushOptions).
-- Reply per entry: {0, the head of the ids} stored · {0, ids with commas, 2} replayed · {13} a part of what was staged
--   is gone · {5} {6, text} {7, text} {8, text} {9, n} {12, ttl, delay} as for push.

-- The reply to a batch that is not stored; nil when it is to be stored.
local function answer_without(list, tag, n, opts, memory)
  local first = memory and remembered_as(memory, opts.ih)
  if first then return {0, first, 2} end
  if first == false then return {5} end
  if not is_list(list) then return {6, 'WRONGTYPE'} end
  local rules = policy_of(tag)
  if rules.ttl and not opts.x then opts.x = in_ms(rules.ttl) end
  local refused = expires_first(opts)
  if refused then return refused end
  if rules.max_length and length(list, tag) + n > rules.max_length then return {9, rules.max_length} end
end

local function push_many(list, encoded, options)
  local tag = '{' .. list .. '}'
  local opts = options ~= '' and cmsgpack.unpack(options) or {}
  local memory = opts.ik and tag .. 'i:pushes:' .. opts.ik
  local batch = cmsgpack.unpack(encoded)
  local staged = type(batch[2]) == 'string'
  local head, payloads = staged and batch[2] or STAMP, staged and {} or batch[2]
  local ids = with_head(head, batch[1])
  local answer = answer_without(list, tag, #ids, opts, memory)
  if not answer and staged and call('ZREM', tag .. 'b', unpack(ids)) < #ids then answer = {13} end
  if answer then
    if staged then unstage(list, tag, ids) end
    return answer
  end
  if options == '' and not opts.x then
    for from = 1, #ids, 500 do
      local elements, fields = {}, {}
      for i = from, math.min(from + 499, #ids) do
        elements[#elements + 1] = '\1' .. ids[i]
        fields[#fields + 1], fields[#fields + 2] = ids[i], payloads[i]
      end
      call('LPUSH', list, unpack(elements))
      if not staged then call('HMSET', tag .. 't', unpack(fields)) end
    end
    due(list, FAR)
    wake(list)
  else
    for i = 1, #ids do enter(list, tag, ids[i], payloads[i], opts, memory and true) end
  end
  if memory then call('SET', memory, table.concat(ids, ',') .. ' ' .. opts.ih, 'PX', DAY) end
  return {0, head}
end

if too_late() then return {'LATE', now} end
return finish(reply_each(push_many, 2))
