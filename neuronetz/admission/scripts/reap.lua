-- Take over what a dead instance left in one tenant: free slots and reservations of its leases, hand its audit
-- rows to the reaper. Bounded; the caller repeats it until nothing is left. Leases that were admitted after the
-- judgement, and their rows, are not touched: the instance has come back to life.
--
-- KEYS  1 leases of the dead  2 rows of the dead  3 rows of the reaper  4 slots of the tenant
--       5 the names of the tenant's hashes of leases and rows
-- ARGV  1 at most so many leases and rows  2 the name of a key's slots without the key's id
--       3 when it was judged, in ms
--       4... request ids of the rows of the reply before: they have arrived and are dropped here
-- Reply: leases reaped, leases left, then request id and row, in turns. A row is dropped from the dead's only when the next
-- call says that it arrived: a reply that is lost loses no row. The same row may thus be handed over twice.

local batch, judged_ms = tonumber(ARGV[1]), tonumber(ARGV[3])

if #ARGV > 3 then
  redis.call('HDEL', KEYS[2], unpack(ARGV, 4))
end

local function release(counter, generation, reserved)
  if counter == '' then
    return
  end
  local fields = redis.call('HMGET', counter, 'reserved', 'generation')
  if fields[2] and fields[2] == generation then
    redis.call('HINCRBY', counter, 'reserved', 0 - math.min(tonumber(reserved), tonumber(fields[1])))
  end
end

-- A key's slots and the counters are named by the leases alone; they carry the tag of KEYS. While their slot
-- is being moved between nodes of a cluster they may be elsewhere already: looking at them first raises the
-- error then, before anything of the lease is changed.
local reaped = 0
local leases = redis.call('HRANDFIELD', KEYS[1], batch, 'WITHVALUES')
for index = 1, #leases, 2 do
  local id = leases[index]
  local key_id, reserved, admitted_ms, tenant_counter, tenant_generation, key_counter, key_generation =
    leases[index + 1]:match('^([^|]*)|[^|]*|([^|]*)|[^|]*|([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)$')
  if tonumber(admitted_ms) <= judged_ms then
    local key_slots = ARGV[2] .. key_id
    for _, name in ipairs({ key_slots, tenant_counter, key_counter }) do
      if name ~= '' then
        redis.call('EXISTS', name)
      end
    end
    redis.call('HDEL', KEYS[1], id)
    redis.call('SREM', KEYS[4], id)
    redis.call('SREM', key_slots, id)
    release(tenant_counter, tenant_generation, reserved)
    release(key_counter, key_generation, reserved)
    reaped = reaped + 1
  end
end

local left = redis.call('HLEN', KEYS[1])
local answer = { reaped, left }
local rows = redis.call('HRANDFIELD', KEYS[2], batch, 'WITHVALUES')
for index = 1, #rows, 2 do
  -- What is still leased is not over.
  if left == 0 or redis.call('HEXISTS', KEYS[1], rows[index]) == 0 then
    redis.call('HSET', KEYS[3], rows[index], rows[index + 1])
    answer[#answer + 1] = rows[index]
    answer[#answer + 1] = rows[index + 1]
  end
end
if #answer > 2 then
  redis.call('SADD', KEYS[5], KEYS[3])
elseif left == 0 then
  redis.call('SREM', KEYS[5], KEYS[1], KEYS[2])
end
return answer
