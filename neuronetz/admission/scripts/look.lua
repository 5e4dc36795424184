-- One tenant's budget counters, leases and waiting audit rows as they are at one moment, for the ledger check.
--
-- KEYS  1 the names of the tenant's hashes of leases and rows  2... budget counters
-- ARGV  1 how a name of leases begins  2 how a name of rows begins  3 at most so many leases and rows
--       4 tidy (1 or 0): strike out names whose hash is empty
-- Reply: 0 where there are more than that, else three lists: for each counter used, generation and repairs
--        (false where there is none), leases as id and value in turns, rows as id and row in turns.

-- All of KEYS 1 carry the tag of KEYS. An admission names again what was struck out.
local names, count = { {}, {} }, 0
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local length = redis.call('HLEN', name)
  if length == 0 then
    if ARGV[4] == '1' then
      redis.call('SREM', KEYS[1], name)
    end
  else
    count = count + length
    for kind = 1, 2 do
      if name:sub(1, #ARGV[kind]) == ARGV[kind] then
        names[kind][#names[kind] + 1] = name
      end
    end
  end
end
if count > tonumber(ARGV[3]) then
  return 0
end

local held = { {}, {} }
for kind = 1, 2 do
  for _, name in ipairs(names[kind]) do
    for _, item in ipairs(redis.call('HGETALL', name)) do
      held[kind][#held[kind] + 1] = item
    end
  end
end

local counters = {}
for index = 2, #KEYS do
  counters[index - 1] = redis.call('HMGET', KEYS[index], 'used', 'generation', 'repairs')
end
return { counters, held[1], held[2] }
