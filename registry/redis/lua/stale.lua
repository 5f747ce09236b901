-- uses: base
-- Whether an element of this generation is a tombstone, whose task is known to be `m`, or plain: its task is in another
-- state now, or ready under a later generation. One whose payload is gone is a tombstone as well.
local function is_stale(m, generation)
  return m and (m.s ~= 'r' or (m.g or 0) ~= generation)
end
