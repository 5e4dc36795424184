-- Drop a key's entry and give it a new generation, so that a look-up under way cannot put it back.
-- A tombstone stays. KEYS: the key's entry, its generation. ARGV: the tombstone, the new generation, its
-- life in seconds.
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    redis.call('DEL', KEYS[1])
end
return 1
