-- Admit one request: all of it or nothing. The order of refusals is rate, budget spent, budget reserved,
-- concurrency; in each the tenant's scope before the key's.
--
-- KEYS  1 rpm of the tenant    2 rpm of the key      3 slots of the tenant   4 slots of the key
--       5 leases of instance   6 rows of instance    7 tombstone of the request
--       8 budget counter of the tenant               9 budget counter of the key
--       10 the names of the tenant's hashes of leases and rows
-- ARGV  1 request id           2 now in ms (0: the server's)                 3 key id    4 slot (1 or 0)
--       5,6 rpm                7,8 concurrency       9,10 budget (tenant, key; -1: no limit)
--       11 prompt estimate     12 predict wanted     13 predict at least
--       14,15 period of the tenant's budget, start and end                   16,17 of the key's
--       18,19 seeds: tokens used by the ledger (tenant, key; -1: not read)   20 the stub of the audit row
--
-- Replies, the first item naming the form:
--   admitted  now_ms  granted  ''     0         + state
--   rate | budget | reserved | concurrency  now_ms  0  scope  retry_ms  + state
--             (reserved: the budget holds it, once requests that run give back what they do not use)
--   seed      now_ms  tenant's counter missing  key's counter missing
--   period    now_ms            the caller's periods do not hold now: nothing was looked at
--   aborted   now_ms            this request was given up before its admission arrived
-- state: requests left and ms until all are again (tenant, then key), tokens left (tenant, key); -1: no such.

local WINDOW = 60
local id, key_id, slot = ARGV[1], ARGV[3], ARGV[4]
local rpm = { tonumber(ARGV[5]), tonumber(ARGV[6]) }
local concurrency = { tonumber(ARGV[7]), tonumber(ARGV[8]) }
local budget = { tonumber(ARGV[9]), tonumber(ARGV[10]) }
local estimate, wanted, least = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local starts = { tonumber(ARGV[14]), tonumber(ARGV[16]) }
local ends = { tonumber(ARGV[15]), tonumber(ARGV[17]) }
local seeds = { tonumber(ARGV[18]), tonumber(ARGV[19]) }
local stub = ARGV[20]
local SCOPES = { 'tenant', 'key' }

local time = redis.call('TIME')
local now_ms = tonumber(ARGV[2])
if now_ms <= 0 then
  now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local now_s = math.floor(now_ms / 1000)

if redis.call('EXISTS', KEYS[7]) == 1 then
  return { 'aborted', now_ms }
end

-- An admission that is repeated changes nothing and answers as the first one did.
local held = redis.call('HGET', KEYS[5], id)
if held then
  local granted, admitted_ms = held:match('^[^|]*|[^|]*|[^|]*|([^|]*)|([^|]*)|')
  return { 'admitted', tonumber(admitted_ms), tonumber(granted), '', 0, -1, -1, -1, -1, -1, -1 }
end

for scope = 1, 2 do
  if slot == '1' and budget[scope] >= 0 and (now_s < starts[scope] or now_s >= ends[scope]) then
    return { 'period', now_ms }
  end
end

-- A window is a hash of seconds, their sum, the second up to which it was advanced and that of its newest
-- request. It holds the seconds at-60 to at, one more than the minute has: a request that came at the end of
-- a second would otherwise be forgotten up to a second early.
local function advance(key)
  local state = redis.call('HMGET', key, 'sum', 'last', 'newest')
  local sum, last, newest = tonumber(state[1]), tonumber(state[2]), tonumber(state[3])
  if not last then
    return { sum = 0, at = now_s, newest = now_s - WINDOW - 1 }
  end
  if now_s - last > WINDOW then
    redis.call('DEL', key)
    return { sum = 0, at = now_s, newest = now_s - WINDOW - 1 }
  end
  if last - now_s > WINDOW then
    -- The clock was set back. Nobody knows how long ago the requests were, so they count from now on;
    -- holding on to `last` would keep the window shut until the clock has caught up.
    redis.call('DEL', key)
    redis.call('HSET', key, now_s, sum, 'sum', sum, 'last', now_s, 'newest', now_s)
    redis.call('EXPIRE', key, 2 * WINDOW)
    return { sum = sum, at = now_s, newest = now_s }
  end
  if now_s <= last then
    return { sum = sum, at = last, newest = newest }
  end
  local fallen = {}
  for second = last - WINDOW, now_s - WINDOW - 1 do
    fallen[#fallen + 1] = second
  end
  for _, count in ipairs(redis.call('HMGET', key, unpack(fallen))) do
    sum = sum - (tonumber(count) or 0)
  end
  redis.call('HDEL', key, unpack(fallen))
  redis.call('HSET', key, 'sum', sum, 'last', now_s)
  return { sum = sum, at = now_s, newest = newest }
end

-- Milliseconds until so many requests have left the window that one more fits.
local function until_free(key, window, limit)
  local seconds = {}
  for second = window.at - WINDOW, window.at do
    seconds[#seconds + 1] = second
  end
  local left = window.sum
  for index, count in ipairs(redis.call('HMGET', key, unpack(seconds))) do
    left = left - (tonumber(count) or 0)
    if left < limit then
      return (seconds[index] + WINDOW + 1) * 1000 - now_ms
    end
  end
  return WINDOW * 1000
end

local windows, counters, seen, missing = {}, {}, {}, { 0, 0 }
for scope = 1, 2 do
  if rpm[scope] >= 0 then
    windows[scope] = advance(KEYS[scope])
  end
  if budget[scope] >= 0 and slot == '0' then
    -- What takes no slot takes no tokens: it is told what is left, where that is known, and bound by nothing.
    local fields = redis.call('HMGET', KEYS[7 + scope], 'used', 'reserved')
    local used, reserved = tonumber(fields[1]), tonumber(fields[2])
    if used and reserved and now_s >= starts[scope] and now_s < ends[scope] then
      seen[scope] = { used = used, reserved = reserved }
    end
  elseif budget[scope] >= 0 then
    local key = KEYS[7 + scope]
    local fields = redis.call('HMGET', key, 'used', 'reserved', 'generation')
    if fields[1] then
      counters[scope] = { used = tonumber(fields[1]), reserved = tonumber(fields[2]), generation = fields[3] }
    elseif seeds[scope] >= 0 then
      -- The generation tells a lease whether its reservation is in this counter or in one that was lost.
      local generation = time[1] .. '.' .. time[2]
      redis.call('HSET', key, 'used', seeds[scope], 'reserved', 0, 'generation', generation)
      redis.call('EXPIRE', key, ends[scope] + 172800 - now_s)
      counters[scope] = { used = seeds[scope], reserved = 0, generation = generation }
    else
      missing[scope] = 1
    end
  end
end

local function reply(form, granted, scope, retry_ms)
  local answer = { form, now_ms, granted, scope, retry_ms }
  for index = 1, 2 do
    local window = windows[index]
    answer[#answer + 1] = window and math.max(0, rpm[index] - window.sum) or -1
    answer[#answer + 1] = window and math.max(0, (window.newest + WINDOW + 1) * 1000 - now_ms) or -1
  end
  for index = 1, 2 do
    local counter = counters[index] or seen[index]
    answer[#answer + 1] = counter and math.max(0, budget[index] - counter.used - counter.reserved) or -1
  end
  return answer
end

-- A refusal consumes nothing, but it leaves its audit row, should the process end before it has written it.
local function refuse(form, outcome, scope, retry_ms)
  local row = cjson.decode(stub)
  row.outcome = outcome
  row.status = 429
  redis.call('HSET', KEYS[6], id, cjson.encode(row))
  return reply(form, 0, SCOPES[scope], retry_ms)
end

for scope = 1, 2 do
  local window = windows[scope]
  if window and window.sum >= rpm[scope] then
    return refuse('rate', 'rate_limited', scope, until_free(KEYS[scope], window, rpm[scope]))
  end
end

if missing[1] == 1 or missing[2] == 1 then
  return { 'seed', now_ms, missing[1], missing[2] }
end

local granted, needed = wanted, math.max(1, estimate + math.min(least, wanted))
for scope = 1, 2 do
  local counter = counters[scope]
  if counter and budget[scope] - counter.used < needed then
    return refuse('budget', 'budget_exhausted', scope, ends[scope] * 1000 - now_ms)
  end
end
for scope = 1, 2 do
  local counter = counters[scope]
  if counter then
    local left = budget[scope] - counter.used - counter.reserved
    if left < needed then
      return refuse('reserved', 'budget_exhausted', scope, 1000)
    end
    granted = math.min(granted, left - estimate)
  end
end

for scope = 1, 2 do
  if concurrency[scope] >= 0 and redis.call('SCARD', KEYS[2 + scope]) >= concurrency[scope] then
    return refuse('concurrency', 'concurrency_limited', scope, 1000)
  end
end

-- From here on the request is admitted. The lease is written first: should a later write fail, settling it
-- gives back what the earlier ones took.
local reserved = estimate + granted
local named = { '|', '|' }
for scope = 1, 2 do
  if counters[scope] then
    named[scope] = KEYS[7 + scope] .. '|' .. counters[scope].generation
  end
end
redis.call('HSET', KEYS[5], id, string.format(
  '%s|%s|%.0f|%.0f|%.0f|%s|%s', key_id, slot, reserved, granted, now_ms, named[1], named[2]
))
redis.call('HSET', KEYS[6], id, stub)
redis.call('SADD', KEYS[10], KEYS[5], KEYS[6])
for scope = 1, 2 do
  local window, counter = windows[scope], counters[scope]
  if slot == '1' then
    redis.call('SADD', KEYS[2 + scope], id)
  end
  if counter then
    counter.reserved = redis.call('HINCRBY', KEYS[7 + scope], 'reserved', reserved)
  end
  if window then
    window.sum, window.newest = window.sum + 1, window.at
    redis.call('HINCRBY', KEYS[scope], window.at, 1)
    redis.call('HSET', KEYS[scope], 'sum', window.sum, 'last', window.at, 'newest', window.at)
    redis.call('EXPIRE', KEYS[scope], 2 * WINDOW)
  end
end
return reply('admitted', granted, '', 0)
