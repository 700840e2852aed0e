-- The index KEYS[1] of keys by the time at which something is to be done. ARGV[1] says
-- what:
-- due, skip, limit, all: a page, {time, how many keys there are, key, its time, ...};
-- without all (1) only what is due.
-- hint, key, time, relative: that the key is to be found by then, or that many
-- milliseconds from now (1), if nothing says earlier.
-- correct, key, read, time: what was read becomes that time, or, with 0, is removed,
-- if it still stands there.
-- drop, key, time: removes the key, if it stands there with that time or an earlier one.
-- But for a page the answer is how many keys there are.
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
if ARGV[1] == 'due' then
	local page = {now, redis.call('ZCARD', KEYS[1])}
	local found = ARGV[3] == '0' and {} or redis.call('ZRANGE', KEYS[1], ARGV[2], ARGV[2] + ARGV[3] - 1, 'WITHSCORES')
	for i = 1, #found, 2 do
		if ARGV[4] ~= '1' and tonumber(found[i + 1]) > now then
			break
		end
		page[#page + 1] = found[i]
		page[#page + 1] = tonumber(found[i + 1])
	end
	return page
elseif ARGV[1] == 'hint' then
	local at = ARGV[4] == '1' and now + ARGV[3] or ARGV[3]
	redis.call('ZADD', KEYS[1], 'LT', at, ARGV[2])
	return redis.call('ZCARD', KEYS[1])
end
local there = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[2]) or '')
if ARGV[1] == 'drop' then
	if there and there <= tonumber(ARGV[3]) then
		redis.call('ZREM', KEYS[1], ARGV[2])
	end
elseif there == tonumber(ARGV[3]) then
	if ARGV[4] == '0' then
		redis.call('ZREM', KEYS[1], ARGV[2])
	else
		redis.call('ZADD', KEYS[1], ARGV[4], ARGV[2])
	end
end
return redis.call('ZCARD', KEYS[1])
