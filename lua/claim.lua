-- claim KEYS[1] for one delivery; the rules of record.decide in store.go.
-- ARGV: status, fixed, goods, owner, lease and retention in milliseconds,
-- 1 if a conflict is forwarded.
-- Answer: verdict, attempt, lease end, milliseconds to wait, 1 for late goods,
-- the contradicted status or -1, the app's status code.

local key, owner, lease, retention, forward_conflict = KEYS[1], ARGV[4], tonumber(ARGV[5]), ARGV[6], ARGV[7] == '1'
local news = {status = tonumber(ARGV[1]), code = 0, fixed = ARGV[2], goods = ARGV[3]}

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
	return {'forwarded', r.attempt, r.claim.lease_end, 0, late and 1 or 0, contradicts(r.doubt), 0}
end

if r.claim and r.claim.owner == owner then
	return granted()
end
if r.accepted then
	if same(r.accepted, news) then
		return {'duplicate', 0, 0, 0, 0, -1, r.accepted.code}
	end
	if news.status == 0 then
		return {'stale', 0, 0, 0, 0, -1, r.accepted.code}
	end
end
if r.claim and now < r.claim.lease_end then
	return {'in_flight', 0, r.claim.lease_end, r.claim.lease_end - now, 0, -1, 0}
end
local doubt = r.doubt
if r.claim and r.claim.status ~= 0 then
	doubt = r.claim
end
if doubt and r.accepted and same(r.accepted, doubt) then
	doubt = nil
end
if doubt and news.status == 0 then
	return {'stale', 0, 0, 0, 0, -1, 200}
end
local against = contradicts(doubt)
if against >= 0 and not forward_conflict and not (doubt and same(doubt, news)) then
	return {'conflict', 0, 0, 0, 0, against, 0}
end
r.doubt = doubt
r.claim = {status = news.status, code = 0, fixed = news.fixed, goods = news.goods, owner = owner, lease_end = now + lease}
r.attempt = math.min(r.attempt + 1, 65535)
store(key, r, retention)
return granted()
