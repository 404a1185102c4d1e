-- A call has ended: remove it from the running calls, and correct its estimated cost. Doing it twice changes nothing.
--
-- KEYS: the numbers of the sender's settlements that were done; the tenant's running calls; then one key for each of
-- request.rates, each of request.concurrency, and each account.
-- ARGV[1], JSON, with instants and durations in microseconds of Redis's clock:
--   number       of the settlement, unique for each sender; they may come in any order
--   floor        no settlement with a lower number is sent any more
--   id           of the call
--   began, ended
--   estimate, actual    {tokens, micros}
--   rates        by how much each theoretical arrival moves
--   concurrency  the number of concurrency limits
--   now          the time, only in tests

local request = cjson.decode(ARGV[1])

local function text(number)
  return string.format('%.0f', number)
end

local now = request.now
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

if redis.call('ZSCORE', KEYS[1], text(request.number)) then
  return 0
end

-- Everything is read before anything is written: an error, such as a key of another type, then leaves nothing half done.
-- Whether it was counted here. It was not if Redis did not answer when the call was admitted.
local reserved = redis.call('ZSCORE', KEYS[2], request.id)
local first_account = 2 + #request.rates + request.concurrency + 1
for i = 1, request.concurrency do
  redis.call('ZSCORE', KEYS[2 + #request.rates + i], request.id)
end
local arrivals = {}
for i, change in ipairs(request.rates) do
  arrivals[i] = math.max(tonumber(redis.call('GET', KEYS[2 + i]) or 0), now) + change
end
local counted = {}
for i = first_account, #KEYS do
  local read = tonumber(redis.call('HGET', KEYS[i], 'read') or nil)
  -- An account that is missing, or was read from the ledger later, gets the cost of this call from the ledger.
  if read and read < request.ended then
    local known = reserved or request.began <= read  -- the ledger counted the call at its estimate, too
    counted[i] = {request.actual[1] - (known and request.estimate[1] or 0),
      request.actual[2] - (known and request.estimate[2] or 0)}
  end
end

redis.call('ZADD', KEYS[1], text(request.number), text(request.number))
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. text(request.floor))
redis.call('PEXPIREAT', KEYS[1], text(math.ceil(now / 1000) + 2 * 86400000))
redis.call('ZREM', KEYS[2], request.id)
for i = 1, request.concurrency do
  redis.call('ZREM', KEYS[2 + #request.rates + i], request.id)
end
for i, change in ipairs(request.rates) do
  if reserved and change ~= 0 then
    if arrivals[i] > now then
      redis.call('SET', KEYS[2 + i], text(arrivals[i]), 'PXAT', text(math.ceil(arrivals[i] / 1000)))
    else
      redis.call('DEL', KEYS[2 + i])
    end
  end
end
for i, change in pairs(counted) do
  redis.call('HINCRBY', KEYS[i], 'tokens', text(change[1]))
  redis.call('HINCRBY', KEYS[i], 'micros', text(change[2]))
end
return 1
