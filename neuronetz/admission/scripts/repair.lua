-- Correct what a budget counter says was used, if it still says what was read. Reservations are not touched.
--
-- KEYS  1 the counter
-- ARGV  1 used, 2 generation, 3 repairs ('': none yet), as they were read  4 what was really used
-- Reply: 1 where it was corrected, 0 where it has changed meanwhile.

-- Between two repairs `used` only grows: the same value after the same number of repairs means that nothing
-- was settled in between.
local fields = redis.call('HMGET', KEYS[1], 'used', 'generation', 'repairs')
for index = 1, 3 do
  if (fields[index] or '') ~= ARGV[index] then
    return 0
  end
end
redis.call('HSET', KEYS[1], 'used', ARGV[4])
redis.call('HINCRBY', KEYS[1], 'repairs', 1)
return 1
