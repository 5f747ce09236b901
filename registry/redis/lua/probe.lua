-- uses: base
-- Probe: nothing changes, but it is refused where Redis takes no writes, or none of ours. A full Redis lets it pass, as
-- it does pops.
-- KEYS and ARGV: none beyond the common three. Reply: {0}.
call('DEL', SPACE .. 'probe')
return {0}
