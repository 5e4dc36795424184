-- End one lease: free its slots, turn its reservation into what was used, put the final audit row in place of
-- the stub. Once the lease is gone (settled, reaped, lost with the data) nothing is changed.
--
-- KEYS  1 slots of the tenant  2 slots of the key  3 leases of instance  4 rows of instance  5 tombstone
--       6,7 the budget counters of the tenant and the key
-- ARGV  1 request id  2 tokens used  3 the final row ('': leave the stub)  4 abort (1 or 0)
-- Reply: 1 where this call ended the lease, 0 where there was none.

local id, used, row = ARGV[1], tonumber(ARGV[2]), ARGV[3]

if ARGV[4] == '1' then
  -- The admission's fate is unknown: it may still be on its way, and must then be refused.
  redis.call('SET', KEYS[5], '1', 'EX', 120)
end

local lease = redis.call('HGET', KEYS[3], id)
if not lease then
  return 0
end
-- This write comes first: with memory at its limit, a script may grow data only after one that does not.
redis.call('HDEL', KEYS[3], id)
redis.call('SREM', KEYS[1], id)
redis.call('SREM', KEYS[2], id)

local reserved, tenant_counter, tenant_generation, key_counter, key_generation =
  lease:match('^[^|]*|[^|]*|([^|]*)|[^|]*|[^|]*|([^|]*)|([^|]*)|([^|]*)|([^|]*)$')

-- The counters that the lease names, not those of the caller: they are of one tag, and normally KEYS 6 and 7.
local function charge(counter, generation)
  if counter == '' then
    return
  end
  local fields = redis.call('HMGET', counter, 'reserved', 'generation')
  if not fields[2] then
    return -- lost: the next admission makes it anew from the ledger
  end
  if fields[2] == generation then
    redis.call('HINCRBY', counter, 'reserved', 0 - math.min(tonumber(reserved), tonumber(fields[1])))
  end
  redis.call('HINCRBY', counter, 'used', used)
end
charge(tenant_counter, tenant_generation)
charge(key_counter, key_generation)

-- No stub means that PostgreSQL already has the row: it would never be taken away again.
if row ~= '' and redis.call('HEXISTS', KEYS[4], id) == 1 then
  redis.call('HSET', KEYS[4], id, row)
end
return 1
