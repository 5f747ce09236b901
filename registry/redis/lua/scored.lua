-- uses: base, members
-- Scored: the members of one of a queue's sorted sets after a place. The place stays valid when members are added or
-- removed. Reads only.
-- KEYS: the list. ARGV after the common three: the letter of the set, 1 for the highest score first, score and member
--   of the place ('' and '' for the front), members at most.
-- Reply: {0, member, score, member, score, …} · {6|8, text}.

return reply_of(members, KEYS[1], ARGV[4], ARGV[5] == '1', ARGV[6], ARGV[7], tonumber(ARGV[8]))
