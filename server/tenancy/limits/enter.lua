-- Admit a call under all limits of its tenant and count it, or refuse it and count nothing.
--
-- KEYS: the tenant's running calls; then one key for each of request.rates, request.concurrency and request.accounts.
-- ARGV[1], JSON, with instants and durations in microseconds of Redis's clock:
--   id           of the call
--   valid        the instant after which no caller waits for the answer, so that nothing is counted
--   lease        how long the call counts as running
--   rates        {spacing, tolerance} of each
--   concurrency  the most calls at once of each
--   accounts     {start, end, tokens, token limit, micros, micro limit} of each; -1 is no limit
--   baselines    {tokens, micros, read} of accounts that were missing, by their position as text
--   now          the time, only in tests
-- Returns a word, the time, and what the word is about:
--   "ok"
--   "late"
--   "period"     the period of an account is over, or has not begun
--   "missing"    positions of accounts that do not exist
--   "refused"    for each limit without room its position among all, and two numbers:
--                rates: microseconds too early; concurrency: 0; accounts: tokens and micros that are used

local DAY = 86400000000
local request = cjson.decode(ARGV[1])
local rates, concurrency, accounts = request.rates, request.concurrency, request.accounts

local function text(number)  -- as an integer, never as 1e+15
  return string.format('%.0f', number)
end

local now = request.now
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
if now > request.valid then
  return {'late', now}
end

-- The accounts of the current periods, made from baselines where they are missing. A call without a cost needs none.
local used, missing = {}, {}
for i, account in ipairs(accounts) do
  local key = KEYS[1 + #rates + #concurrency + i]
  if now < account[1] or now >= account[2] then
    return {'period', now}
  end
  local found = redis.call('HMGET', key, 'tokens', 'micros')
  local baseline = request.baselines[tostring(i)]
  if not found[1] and baseline then
    redis.call('HSET', key, 'tokens', text(baseline[1]), 'micros', text(baseline[2]), 'read', text(baseline[3]))
    -- Calls may end and settle after the period.
    redis.call('PEXPIREAT', key, text(math.ceil((account[2] + 2 * DAY) / 1000)))
    found = {baseline[1], baseline[2]}
  end
  if found[1] then
    used[i] = {tonumber(found[1]), tonumber(found[2])}
  elseif (account[3] > 0 and account[4] >= 0) or (account[5] > 0 and account[6] >= 0) then
    missing[#missing + 1] = i
  end
end
if #missing > 0 then
  return {'missing', now, unpack(missing)}
end

local excesses = {}
local function refuse(position, one, two)
  excesses[#excesses + 1] = position
  excesses[#excesses + 1] = one
  excesses[#excesses + 1] = two
end

local arrivals = {}
for i, rate in ipairs(rates) do
  local arrival = math.max(tonumber(redis.call('GET', KEYS[1 + i]) or 0), now) + rate[1]
  arrivals[i] = arrival
  if rate[1] > 0 and arrival - now > rate[2] then
    refuse(i, arrival - now - rate[2], 0)
  end
end
for i, most in ipairs(concurrency) do
  if redis.call('ZCOUNT', KEYS[1 + #rates + i], '(' .. text(now), '+inf') >= most then
    refuse(#rates + i, 0, 0)
  end
end
for i, account in ipairs(accounts) do
  local tokens, micros = account[3], account[5]
  if used[i] and ((tokens > 0 and account[4] >= 0 and used[i][1] + tokens > account[4])
      or (micros > 0 and account[6] >= 0 and used[i][2] + micros > account[6])) then
    refuse(#rates + #concurrency + i, used[i][1], used[i][2])
  end
end
if #excesses > 0 then
  return {'refused', now, unpack(excesses)}
end

for i, rate in ipairs(rates) do
  if rate[1] > 0 then
    redis.call('SET', KEYS[1 + i], text(arrivals[i]), 'PXAT', text(math.ceil(arrivals[i] / 1000)))
  end
end
for i = 0, #concurrency do
  -- The first set has all running calls: settle.lua looks there whether a call was counted. It is kept a day longer.
  local key = KEYS[i == 0 and 1 or 1 + #rates + i]
  redis.call('ZREMRANGEBYSCORE', key, '-inf', text(now - DAY))
  redis.call('ZADD', key, text(now + request.lease), request.id)
  redis.call('PEXPIREAT', key, text(math.ceil((now + request.lease + 2 * DAY) / 1000)))
end
for i, account in ipairs(accounts) do
  if used[i] then
    redis.call('HINCRBY', KEYS[1 + #rates + #concurrency + i], 'tokens', text(account[3]))
    redis.call('HINCRBY', KEYS[1 + #rates + #concurrency + i], 'micros', text(account[5]))
  end
end
return {'ok', now}
