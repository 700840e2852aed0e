#!lua flags=allow-oom
-- replace the record's bytes on KEYS[1], if they are still the ones that were
-- read. ARGV[1], packed: retention in milliseconds, the length of the old bytes,
-- the old bytes, the new ones; none remove the key. If the new bytes are there
-- already, it was done before and its answer was lost.

local retention, old, at = struct.unpack('>I8Hc0', ARGV[1])
local new = string.sub(ARGV[1], at)
local there = redis.call('GET', KEYS[1]) or ''
if there ~= old then
	return there == new and 1 or 0
end
if new == '' then
	redis.call('DEL', KEYS[1])
else
	redis.call('SET', KEYS[1], new, 'PX', retention)
end
return 1
