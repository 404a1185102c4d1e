-- A call has ended: remove it from the running calls, and correct its estimated cost. Doing it twice changes nothing.
--
-- KEYS: the number of the sender's last settlement; the tenant's running calls; then one key for each of request.rates, each
-- of request.concurrency, and each account.
-- ARGV[1], JSON, with instants and durations in microseconds of Redis's clock:
--   number       of the settlement, ascending for each sender
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

if request.number <= tonumber(redis.call('GET', KEYS[1]) or 0) then
  return 0
end
redis.call('SET', KEYS[1], text(request.number), 'PXAT', text(math.ceil(now / 1000) + 2 * 86400000))

-- Whether it was counted here. It was not if Redis did not answer when the call was admitted.
local reserved = redis.call('ZREM', KEYS[2], request.id) == 1
for i = 1, request.concurrency do
  redis.call('ZREM', KEYS[2 + #request.rates + i], request.id)
end

for i, change in ipairs(request.rates) do
  local key = KEYS[2 + i]
  if reserved and change ~= 0 then
    local arrival = math.max(tonumber(redis.call('GET', key) or 0), now) + change
    if arrival > now then
      redis.call('SET', key, text(arrival), 'PXAT', text(math.ceil(arrival / 1000)))
    else
      redis.call('DEL', key)
    end
  end
end

for i = 2 + #request.rates + request.concurrency + 1, #KEYS do
  local key = KEYS[i]
  local read = tonumber(redis.call('HGET', key, 'read') or nil)
  -- An account that is missing, or was read from the ledger later, gets the cost of this call from the ledger.
  if read and read < request.ended then
    local known = reserved or request.began <= read  -- the ledger counted the call at its estimate, too
    redis.call('HINCRBY', key, 'tokens', text(request.actual[1] - (known and request.estimate[1] or 0)))
    redis.call('HINCRBY', key, 'micros', text(request.actual[2] - (known and request.estimate[2] or 0)))
  end
end
return 1
