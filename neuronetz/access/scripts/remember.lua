-- Cache a key that was looked up, unless what was read may be out of date by now.
-- KEYS: the key's entry, its generation. ARGV: the tombstone, the generation seen before the look-up
-- ('' for none), the entry, its life in seconds.
-- An entry already there is replaced: it was read under the same generation, or is of another version.
if redis.call('GET', KEYS[1]) == ARGV[1] then
    return 'revoked'
end
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[2] then
    return 'stale'
end
redis.call('SET', KEYS[1], ARGV[3], 'EX', ARGV[4])
return 'stored'
