-- A call has ended: free its place, and correct what was counted for it. Doing it twice changes nothing.
--
-- KEYS: how far the sender's settlements have come; the tenant's open calls; then one key for each of ask.rates, for
-- each of ask.calls, and for each account.
-- ARGV[1], JSON, instants and spans in microseconds of Redis's clock:
--   number      of the settlement, ascending for each sender
--   id          of the call
--   began, ended
--   estimate, actual    {tokens, micros}
--   rates       by how much each theoretical arrival moves
--   calls       the number of sets of calls at once
--   now         the time, in tests alone

local ask = cjson.decode(ARGV[1])

local function text(number)
  return string.format('%.0f', number)
end

local now = ask.now
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

if ask.number <= tonumber(redis.call('GET', KEYS[1]) or 0) then
  return 0
end
redis.call('SET', KEYS[1], text(ask.number), 'PXAT', text(math.ceil(now / 1000) + 2 * 86400000))

-- Whether it was counted here: it may have been admitted while this server was away.
local reserved = redis.call('ZREM', KEYS[2], ask.id) == 1
for i = 1, ask.calls do
  redis.call('ZREM', KEYS[2 + #ask.rates + i], ask.id)
end

for i, change in ipairs(ask.rates) do
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

for i = 2 + #ask.rates + ask.calls + 1, #KEYS do
  local key = KEYS[i]
  local read = tonumber(redis.call('HGET', key, 'read') or nil)
  -- Without an account, or with one that was read from the ledger later, the ledger has told everything.
  if read and read < ask.ended then
    local known = reserved or ask.began <= read  -- the ledger, too, had it at its estimate
    redis.call('HINCRBY', key, 'tokens', text(ask.actual[1] - (known and ask.estimate[1] or 0)))
    redis.call('HINCRBY', key, 'micros', text(ask.actual[2] - (known and ask.estimate[2] or 0)))
  end
end
return 1
