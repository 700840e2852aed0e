-- Put ARGV[2] in the place of ARGV[1] under KEYS[1], if that is what stands there;
-- empty stands for nothing. ARGV[3] is a time in milliseconds: when it is over is
-- appended as 8 bytes; 0 for none. ARGV[4] is how long the key lives, in milliseconds.
-- Without ARGV nothing is swapped. KEYS[2] is an index, in which the key stands after a
-- swap with the time of its last 8 bytes, or, if ARGV[5] is 0, does not. After a swap the
-- answer is the time, in milliseconds, and with an index how many keys it has; and else a
-- string: the time, and how long the key still lives, 8 bytes each, and what stands there.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local there = redis.call('GET', KEYS[1]) or ''
if there ~= ARGV[1] then
	return struct.pack('>I8i8', now, there == '' and 0 or redis.call('PTTL', KEYS[1])) .. there
end
local new = ARGV[2]
if new ~= '' and ARGV[3] ~= '0' then
	new = new .. struct.pack('>I8', now + ARGV[3])
end
local answer = now
if KEYS[2] then -- before the record: what Redis denies here has changed nothing
	if ARGV[5] == '1' then
		redis.call('ZADD', KEYS[2], struct.unpack('>I8', string.sub(new, -8)), KEYS[1])
	else
		redis.call('ZREM', KEYS[2], KEYS[1])
	end
	answer = {now, redis.call('ZCARD', KEYS[2])}
end
if new == '' then
	redis.call('DEL', KEYS[1])
else
	redis.call('SET', KEYS[1], new, 'PX', ARGV[4])
end
return answer
