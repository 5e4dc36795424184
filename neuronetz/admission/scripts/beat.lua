-- One heartbeat of an instance, and who has had none for too long.
--
-- KEYS  1 the instances  2 until when nobody counts as dead, after a silence
-- ARGV  1 instance id  2 dead after so many ms  3 now in ms (0: the server's)  4 ms to beat again after a silence
-- Reply: now_ms, ms since this instance's beat before (-1: it is not known), ms until the next instance would
-- count as dead, then the ids of the dead.

local now_ms = tonumber(ARGV[3])
if now_ms <= 0 then
  local time = redis.call('TIME')
  now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local dead_after_ms = tonumber(ARGV[2])
local dead_at = string.format('%.0f', now_ms - dead_after_ms)

-- Where nobody at all has beaten for so long, Redis itself was away, or the host, and the living need a moment
-- to beat again. It may be a process just started, and none of them, that comes first.
local newest = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if newest[2] and now_ms - tonumber(newest[2]) >= dead_after_ms then
  redis.call('SET', KEYS[2], string.format('%.0f', now_ms + tonumber(ARGV[4])), 'PX', 2 * tonumber(ARGV[4]))
end
local spared_ms = tonumber(redis.call('GET', KEYS[2]) or 0) - now_ms
if spared_ms > tonumber(ARGV[4]) then
  spared_ms = 0 -- the clock was set back
end

local before = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], now_ms, ARGV[1])

local oldest = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. dead_at, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local answer = { now_ms, before and math.max(0, now_ms - tonumber(before)) or -1 }
answer[3] = tonumber(oldest[2]) + dead_after_ms - now_ms
if spared_ms > 0 then
  answer[3] = math.min(answer[3], spared_ms)
  return answer
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', dead_at, 'LIMIT', 0, 100)) do
  answer[#answer + 1] = id
end
return answer
