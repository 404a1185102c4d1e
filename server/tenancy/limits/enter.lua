-- Admit a call under all limits of its tenant, or refuse it and count nothing.
--
-- KEYS: the tenant's open calls; then one key for each of ask.rates, ask.calls and ask.accounts.
-- ARGV[1], JSON, instants and spans in microseconds of Redis's clock:
--   id          of the call
--   valid       when nobody waits for the answer any more; nothing is counted after that
--   lease       for how long the call counts among those at once
--   rates       {spacing, tolerance} of each
--   calls       {most} of each, those at once
--   accounts    {start, end, tokens, token limit, micros, micro limit} of each; -1 is no limit
--   seeds       {tokens, micros, read} of accounts that were found missing, by their position as text
--   now         the time, in tests alone
-- Answers a word and the time, then what the word is about:
--   "ok"
--   "late"
--   "period"    an account's period is another one by now
--   "seed"      positions of accounts that do not exist
--   "refused"   for each limit that has no room its position among all, and two numbers:
--               rates: microseconds too early; calls: 0; accounts: tokens and micros that are used

local DAY = 86400000000
local ask = cjson.decode(ARGV[1])
local rates, calls, accounts = ask.rates, ask.calls, ask.accounts

local function text(number)  -- whole, and never as 1e+15
  return string.format('%.0f', number)
end

local now = ask.now
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
if now > ask.valid then
  return {'late', now}
end

-- Accounts of the current periods, made of seeds where they are missing. A call without a cost needs none.
local used, missing = {}, {}
for i, account in ipairs(accounts) do
  local key = KEYS[1 + #rates + #calls + i]
  if now < account[1] or now >= account[2] then
    return {'period', now}
  end
  local found = redis.call('HMGET', key, 'tokens', 'micros')
  local seed = ask.seeds[tostring(i)]
  if not found[1] and seed then
    redis.call('HSET', key, 'tokens', text(seed[1]), 'micros', text(seed[2]), 'read', text(seed[3]))
    -- Calls that began before the period's end are settled after it.
    redis.call('PEXPIREAT', key, text(math.ceil((account[2] + 2 * DAY) / 1000)))
    found = {seed[1], seed[2]}
  end
  if found[1] then
    used[i] = {tonumber(found[1]), tonumber(found[2])}
  elseif (account[3] > 0 and account[4] >= 0) or (account[5] > 0 and account[6] >= 0) then
    missing[#missing + 1] = i
  end
end
if #missing > 0 then
  return {'seed', now, unpack(missing)}
end

local broken = {}
local function refuse(position, one, two)
  broken[#broken + 1] = position
  broken[#broken + 1] = one
  broken[#broken + 1] = two
end

local arrivals = {}
for i, rate in ipairs(rates) do
  local arrival = math.max(tonumber(redis.call('GET', KEYS[1 + i]) or 0), now) + rate[1]
  arrivals[i] = arrival
  if rate[1] > 0 and arrival - now > rate[2] then
    refuse(i, arrival - now - rate[2], 0)
  end
end
for i, most in ipairs(calls) do
  if redis.call('ZCOUNT', KEYS[1 + #rates + i], '(' .. text(now), '+inf') >= most then
    refuse(#rates + i, 0, 0)
  end
end
for i, account in ipairs(accounts) do
  local tokens, micros = account[3], account[5]
  if used[i] and ((tokens > 0 and account[4] >= 0 and used[i][1] + tokens > account[4])
      or (micros > 0 and account[6] >= 0 and used[i][2] + micros > account[6])) then
    refuse(#rates + #calls + i, used[i][1], used[i][2])
  end
end
if #broken > 0 then
  return {'refused', now, unpack(broken)}
end

for i, rate in ipairs(rates) do
  if rate[1] > 0 then
    redis.call('SET', KEYS[1 + i], text(arrivals[i]), 'PXAT', text(math.ceil(arrivals[i] / 1000)))
  end
end
for i = 0, #calls do
  -- The first set is that of the open calls, which also tells what was reserved here; it is kept for a day more.
  local key = KEYS[i == 0 and 1 or 1 + #rates + i]
  redis.call('ZREMRANGEBYSCORE', key, '-inf', text(now - DAY))
  redis.call('ZADD', key, text(now + ask.lease), ask.id)
  redis.call('PEXPIREAT', key, text(math.ceil((now + ask.lease + 2 * DAY) / 1000)))
end
for i, account in ipairs(accounts) do
  if used[i] then
    redis.call('HINCRBY', KEYS[1 + #rates + #calls + i], 'tokens', text(account[3]))
    redis.call('HINCRBY', KEYS[1 + #rates + #calls + i], 'micros', text(account[5]))
  end
end
return {'ok', now}
