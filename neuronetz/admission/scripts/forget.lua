-- Strike out a dead instance, unless it has beaten again.
--
-- KEYS  1 the instances
-- ARGV  1 instance id  2 ms: a later beat means that it lives
-- Reply: 1 where it is no longer listed, 0 where it lives.

local beat = redis.call('ZSCORE', KEYS[1], ARGV[1])
if beat and tonumber(beat) > tonumber(ARGV[2]) then
  return 0
end
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
