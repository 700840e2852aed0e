-- settle the claim on KEYS[1]; the rules of record.settle in store.go.
-- ARGV[1], packed: owner, lease end, retention in milliseconds, status, code,
-- fixed, goods, verdict: accepted, released or unsent.

local key = KEYS[1]
local owner, lease_end, retention, status, code, fixed, goods, at = struct.unpack('>c16I8I8BHc8c8', ARGV[1])
local verdict = string.sub(ARGV[1], at)
local news = {status = status, code = code, fixed = fixed, goods = goods}

local r = load(key)
if not r then
	return redis.error_reply(unreadable)
end

local function takes_fact()
	local a = r.accepted
	if not a then
		return true
	end
	if news.status == 0 then
		return a.status == 0
	end
	return a.status == 0 or (now >= lease_end and r.doubt and same(r.doubt, news))
end

local own = r.claim and r.claim.owner == owner
if verdict == 'accepted' then
	if own then
		r.claim, r.doubt = nil, nil
	elseif not takes_fact() then
		return 0
	elseif r.doubt and same(r.doubt, news) then
		r.doubt = nil
	end
	local a = r.accepted
	if not a or a.status == 0 or news.status ~= 0 then
		r.accepted = news
	end
	if not r.claim and not r.doubt then
		r.attempt = 0
	end
elseif own then
	r.claim = nil
	if verdict == 'unsent' then
		r.attempt = math.max(r.attempt - 1, 0)
	end
else
	return 0
end
store(key, r, retention)
return 1
