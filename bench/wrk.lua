-- The load: one signed callback a request, from lines "ref_id sign" that the
-- benchmark has prepared. Each thread reads a file of its own: <prefix><n>.
-- Arguments: the prefix; json or xml; once (every line one time, the run fails
-- when they run out) or repeat (from the start again); the size to which a JSON
-- body is padded, in bytes, 0 for none; after how many answers each thread ends
-- the run, 0 for never.

local threads = {}

function setup(thread)
	thread:set("id", #threads)
	table.insert(threads, thread)
end

local json = '{"data":{"ref_id":"%s","status":"1","code":"xld25000","hp":"0817777215","price":"25000",' ..
	'"message":"SUCCESS","sn":"0041002233445566","balance":"997061249","tr_id":"3482","rc":"00","sign":"%s"}}'
local xml = '<?xml version="1.0" encoding="UTF-8" ?>\n<mp>\n<ref_id>%s</ref_id>\n<status>1</status>\n<code>xld25000</code>\n' ..
	'<hp>0817777215</hp>\n<price>25000</price>\n<message>SUCCESS</message>\n<sn>0041002233445566</sn>\n' ..
	'<balance>997061249</balance>\n<tr_id>3482</tr_id>\n<rc>00</rc>\n<sign>%s</sign>\n</mp>\n'
local head = 'POST /iak/callback HTTP/1.1\r\nHost: %s\r\nContent-Type: application/%s\r\nContent-Length: %d\r\n\r\n'

local ffi = require("ffi")
ffi.cdef("int getpid(void); int kill(int pid, int signal);")

local lines, template, tail, example, again, last

-- What done() adds up over the threads. wrk copies globals only.
begun, s1, s2, s3, s4, s5 = 0, 0, 0, 0, 0, 0

function init(args)
	lines = assert(io.open(args[1] .. id))
	template = args[2] == "xml" and xml or json
	again = args[3] == "repeat"

	-- All requests are of one length, since all ref_ids are.
	local ref_id, sign = lines:read("*l"):match("^(%S+) (%S+)$")
	tail = ""
	local padded = tonumber(args[4])
	if padded > 0 then
		-- In a field of its own, which IAK's reference does not have. It is the last, and appended: it may be long.
		template = template:gsub('"}}$', "")
		local rest = padded - #template:format(ref_id, sign) - #'","note":""}}'
		assert(rest >= 0, "a body is longer than that")
		tail = '","note":"' .. string.rep("x", rest) .. '"}}'
	end
	local size = #template:format(ref_id, sign) + #tail
	lines:seek("set")
	template = head:format(wrk.host .. ":" .. wrk.port, args[2], size) .. template
	example = template:format(ref_id, sign) .. tail
	last = tonumber(args[5])
end

local asked = false

function request()
	-- wrk asks the first thread once before the start, to look at a request that it does not send.
	if id == 0 and not asked then
		asked = true
		return example
	end
	local line = lines:read("*l")
	if not line and again then
		lines:seek("set")
		line = lines:read("*l")
	end
	if not line then
		io.stderr:write("the prepared callbacks ran out: give a higher -max-rate\n")
		os.exit(1)
	end
	begun = begun + 1
	local space = line:find(" ", 1, true)
	return template:format(line:sub(1, space - 1), line:sub(space + 1)) .. tail
end

local answers = 0

function response(status)
	answers = answers + 1
	if answers == last then
		wrk.thread:stop()
		ffi.C.kill(ffi.C.getpid(), 2) -- SIGINT: wrk itself would wait for the time to be over
	end
	if status == 200 then
		s2 = s2 + 1
		return
	end
	local class = "s" .. math.floor(status / 100)
	_G[class] = _G[class] + 1
end

function done(summary, latency)
	local function total(name)
		local n = 0
		for _, thread in ipairs(threads) do
			n = n + thread:get(name)
		end
		return n
	end
	local e = summary.errors
	io.write(string.format('BENCH {"requests":%d,"begun":%d,"microseconds":%d,"connect_errors":%d,"read_errors":%d,' ..
		'"write_errors":%d,"timeouts":%d,"status_1xx":%d,"status_2xx":%d,"status_3xx":%d,"status_4xx":%d,"status_5xx":%d,' ..
		'"p50_us":%d,"p90_us":%d,"p99_us":%d,"max_us":%d}\n',
		summary.requests, total("begun"), summary.duration, e.connect, e.read, e.write, e.timeout,
		total("s1"), total("s2"), total("s3"), total("s4"), total("s5"),
		latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max))
end
