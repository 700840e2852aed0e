-- claim KEYS[1] for one delivery; the rules of record.decide in store.go.
-- ARGV[1], packed: status, flags (1 if a conflict is forwarded, 2 if what is in
-- doubt is held), fixed, goods, owner, lease and retention in milliseconds. The answer, packed: attempt, lease end,
-- milliseconds to wait, 1 for late goods, the contradicted status or -1, the
-- app's status code, verdict.

local key = KEYS[1]
local status, flags, fixed, goods, owner, lease, retention = struct.unpack('>BBc8c8c16I8I8', ARGV[1])
local forward_conflict, hold = flags % 2 == 1, flags >= 2
local news = {status = status, code = 0, fixed = fixed, goods = goods}

local function answer(verdict, attempt, lease_end, wait, late, against, code)
	return struct.pack('>HI8I8BbH', attempt, lease_end, wait, late, against, code) .. verdict
end

local r = load(key)
if not r then
	return redis.error_reply(unreadable)
end

local function contradicts(doubt)
	local a = r.accepted
	if a and a.status ~= 0 and not same(a, news) and not late_goods(a, news) then
		return a.status
	end
	if doubt and not same(doubt, news) then
		return doubt.status
	end
	return -1
end

local function granted()
	local late = r.accepted and late_goods(r.accepted, news)
	return answer('forwarded', r.attempt, r.claim.lease_end, 0, late and 1 or 0, contradicts(r.doubt), 0)
end

if r.claim and r.claim.owner == owner then
	return granted()
end
if r.accepted then
	if same(r.accepted, news) then
		return answer('duplicate', 0, 0, 0, 0, -1, r.accepted.code)
	end
	if news.status == 0 then
		return answer('stale', 0, 0, 0, 0, -1, r.accepted.code)
	end
end
if r.claim and now < r.claim.lease_end then
	return answer('in_flight', 0, r.claim.lease_end, r.claim.lease_end - now, 0, -1, 0)
end
local doubt = r.doubt
if r.claim and r.claim.status ~= 0 then
	doubt = r.claim
end
if doubt and r.accepted and same(r.accepted, doubt) then
	doubt = nil
end
if doubt and news.status == 0 then
	return answer('stale', 0, 0, 0, 0, -1, 200)
end
local against = contradicts(doubt)
if against >= 0 and not forward_conflict and not (doubt and same(doubt, news)) then
	return answer('conflict', 0, 0, 0, 0, against, 0)
end
if hold and doubt and (same(doubt, news) or (r.doubt and same(r.doubt, news))) then
	return answer('held', 0, 0, 0, 0, -1, 0)
end
r.doubt = doubt
r.claim = {status = news.status, code = 0, fixed = news.fixed, goods = news.goods, owner = owner, lease_end = now + lease}
r.attempt = math.min(r.attempt + 1, 65535)
store(key, r, retention)
return granted()
