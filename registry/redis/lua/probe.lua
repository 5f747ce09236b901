-- uses: base
-- Probe: nothing changes, but it is refused where any other script would be.
-- KEYS and ARGV: none beyond the common three. Reply: {0}.
call('DEL', SPACE .. 'probe')
return {0}
