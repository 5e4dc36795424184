-- One heartbeat of an instance, and who has had none for too long.
--
-- KEYS  1 the instances
-- ARGV  1 instance id  2 dead after so many ms  3 now in ms (0: the server's)
-- Reply: now_ms, ms since this instance's beat before (-1: it is not known), ms until the next instance would
-- count as dead, then the ids of the dead.

local now_ms = tonumber(ARGV[3])
if now_ms <= 0 then
  local time = redis.call('TIME')
  now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local dead_after_ms = tonumber(ARGV[2])
local dead_at = string.format('%.0f', now_ms - dead_after_ms)

local before = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], now_ms, ARGV[1])

local oldest = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. dead_at, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local answer = {
  now_ms,
  before and math.max(0, now_ms - tonumber(before)) or -1,
  tonumber(oldest[2]) + dead_after_ms - now_ms,
}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', dead_at, 'LIMIT', 0, 100)) do
  answer[#answer + 1] = id
end
return answer
