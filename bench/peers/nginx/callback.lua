-- The same job as iak_callback's, as a merchant might write it for nginx:
-- verify the signature, claim the outcome in Redis, forward the callback, settle
-- by the app's answer, answer as the app did. One call to Redis for the claim,
-- one to settle.
--
-- Left out, which spares it work: XML; one normal form (the body is forwarded as
-- it came); every check of a field but ref_id, sign and status; conflicts, late
-- goods and "process" after "success" (the first outcome that was accepted stays
-- the only one); outcomes in doubt and Iak-Attempt's count; a log line and metrics for each callback;
-- a second try to settle when Redis fails.

local cjson = require "cjson.safe"
local bit = require "bit"

local _M = {}

local lease = 35 * 1000
local retention = 30 * 24 * 3600 * 1000
local timeout = 500

-- release takes a claim back, but only its own.
local release = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

-- redis sends one command and returns its reply, or nil and an error; false is
-- Redis's nil. It knows only the replies of the commands below.
local function redis(...)
	local sock = ngx.socket.tcp()
	sock:settimeout(timeout)
	local ok, err = sock:connect(_M.redis_host, _M.redis_port, {pool_size = 128})
	if not ok then
		return nil, err
	end
	local command = {"*", select("#", ...), "\r\n"}
	for i = 1, select("#", ...) do
		local word = tostring((select(i, ...)))
		local n = #command
		command[n + 1], command[n + 2], command[n + 3], command[n + 4], command[n + 5] = "$", #word, "\r\n", word, "\r\n"
	end
	ok, err = sock:send(command)
	if not ok then
		return nil, err
	end
	local line
	line, err = sock:receive()
	if not line then
		return nil, err
	end
	local kind, reply = line:sub(1, 1), line:sub(2)
	if kind == "-" then
		return nil, reply
	elseif kind == "$" and reply == "-1" then
		reply = false
	elseif kind == "$" then
		reply, err = sock:receive(tonumber(reply) + 2)
		if not reply then
			return nil, err
		end
		reply = reply:sub(1, -3)
	end
	sock:setkeepalive(0, 128)
	return reply
end

-- same compares two strings in a time that does not depend on what they hold.
local function same(a, b)
	if #a ~= #b then
		return false
	end
	local difference = 0
	for i = 1, #a do
		difference = bit.bor(difference, bit.bxor(a:byte(i), b:byte(i)))
	end
	return difference == 0
end

function _M.serve()
	if ngx.req.get_method() ~= "POST" then
		ngx.header.Allow = "POST"
		return ngx.exit(405)
	end
	ngx.req.read_body()
	local document = cjson.decode(ngx.req.get_body_data() or "")
	local data = type(document) == "table" and document.data
	if type(data) ~= "table" then
		return ngx.exit(400)
	end
	local ref_id, sign, status = data.ref_id, data.sign, data.status
	if type(ref_id) ~= "string" or #ref_id == 0 or #ref_id > 255 then
		return ngx.exit(422)
	end
	if type(sign) ~= "string" or not same(sign:lower(), ngx.md5(_M.username .. _M.api_key .. ref_id)) then
		return ngx.exit(403)
	end
	if status ~= "0" and status ~= "1" and status ~= "2" then
		return ngx.exit(422)
	end

	local key = "peer:test:" .. ref_id
	local claim = "claimed:" .. ngx.var.request_id
	local held, err = redis("SET", key, claim, "NX", "GET", "PX", lease)
	if err then
		ngx.header["Retry-After"] = "5"
		return ngx.exit(503)
	end
	if held then
		local accepted = held:match("^accepted:(%d+)$")
		if not accepted then
			ngx.header["Retry-After"] = "5"
			return ngx.exit(409)
		end
		ngx.header["Idempotent-Replayed"] = "true"
		ngx.status = tonumber(accepted)
		return ngx.eof()
	end

	ngx.req.set_header("Content-Type", "application/json")
	ngx.req.set_header("Idempotency-Key", "test:" .. ngx.escape_uri(ref_id) .. ":" .. status)
	ngx.req.set_header("Iak-Account", "test")
	ngx.req.set_header("Iak-Attempt", "1")
	local answer = ngx.location.capture("/app", {method = ngx.HTTP_POST, always_forward_body = true})
	if answer.status >= 200 and answer.status < 300 and not answer.truncated then
		redis("SET", key, "accepted:" .. answer.status, "PX", retention)
	elseif answer.status ~= 502 and answer.status ~= 504 then
		redis("EVAL", release, 1, key, claim)
	end
	ngx.status = answer.status
	for name, value in pairs(answer.header) do
		ngx.header[name] = value
	end
	ngx.print(answer.body)
end

return _M
