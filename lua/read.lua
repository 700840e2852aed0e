#!lua flags=no-writes
-- read KEYS[1]. The answer, packed: the time and what is left until the key
-- expires, both in milliseconds, and the record's bytes, none if there is none.

local now = redis.call('TIME')
return struct.pack('>I8i8', now[1] * 1000 + math.floor(now[2] / 1000), redis.call('PTTL', KEYS[1]))
	.. (redis.call('GET', KEYS[1]) or '')
