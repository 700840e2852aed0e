-- The record's bytes and rules, as in store.go.

local now_parts = redis.call('TIME')
local now = now_parts[1] * 1000 + math.floor(now_parts[2] / 1000)
local no_goods = string.rep('\0', 8)
local unreadable = 'IAKRECORD the record was written by another version of iak_callback, or the key is used by ' ..
	'something else: run one version on one store, or give it a key_prefix of its own'

local function same(o, p)
	return o.status == p.status and (o.status == 0 or (o.fixed == p.fixed and o.goods == p.goods))
end

local function late_goods(o, later)
	return o.status == 1 and later.status == 1 and o.fixed == later.fixed
		and o.goods == no_goods and later.goods ~= no_goods
end

-- load returns nil when the bytes cannot be read.
local function load(key)
	local b = redis.call('GET', key)
	if not b then
		return {attempt = 0}
	end
	if #b < 4 or string.byte(b, 1) ~= 1 or string.byte(b, 2) > 7 then
		return nil
	end
	local flags = string.byte(b, 2)
	local has = {accepted = flags % 2 == 1, doubt = math.floor(flags / 2) % 2 == 1, claim = flags >= 4}
	local size = 4 + (has.accepted and 19 or 0) + (has.doubt and 19 or 0) + (has.claim and 43 or 0)
	if #b ~= size then
		return nil
	end
	local r, at = {attempt = struct.unpack('>H', b, 3)}, 5
	for _, part in ipairs({'accepted', 'doubt', 'claim'}) do
		if has[part] then
			local o = {}
			o.status, o.code, o.fixed, o.goods, at = struct.unpack('>BHc8c8', b, at)
			if o.status > 2 then
				return nil
			end
			if part == 'claim' then
				o.owner, o.lease_end, at = struct.unpack('>c16I8', b, at)
			end
			r[part] = o
		end
	end
	return r
end

-- store writes the record, for retention milliseconds; one that says no more
-- than none would is removed.
local function store(key, r, retention)
	if r.attempt == 0 and not (r.accepted or r.doubt or r.claim) then
		redis.call('DEL', key)
		return
	end
	local flags, b = 0, ''
	for bit, part in ipairs({'accepted', 'doubt', 'claim'}) do
		local o = r[part]
		if o then
			flags = flags + 2 ^ (bit - 1)
			b = b .. struct.pack('>BHc8c8', o.status, o.code, o.fixed, o.goods)
			if part == 'claim' then
				b = b .. struct.pack('>c16I8', o.owner, o.lease_end)
			end
		end
	end
	redis.call('SET', key, struct.pack('>BBH', 1, flags, r.attempt) .. b, 'PX', retention)
end
