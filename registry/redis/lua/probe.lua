-- uses: base
-- Probe: changes nothing, but fails when Redis takes no writes, or none of ours. A full Redis accepts it, as it accepts
-- pops.
-- KEYS and ARGV: none beyond the common three. Reply: {0}.
call('DEL', SPACE .. 'probe')
return {0}
