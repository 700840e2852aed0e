'use strict';

// The same job as iak_callback's, as a merchant might write it in Node: verify the
// signature, claim the outcome in Redis, forward the callback, settle by the app's
// answer, answer as the app did. One call to Redis for the claim, one to settle.
//
// Its best settings: a process for each processor, ioredis with automatic
// pipelining, undici's pool in the place of http.request, NODE_ENV=production.
//
// Left out, which spares it work: XML; one normal form (the body is forwarded as it
// came); every check of a field but ref_id, sign and status; conflicts, late goods and
// "process" after "success" (the first outcome that was accepted stays the only one);
// outcomes in doubt and Iak-Attempt's count; a log line and metrics for each callback; a second try to
// settle when Redis fails.

const cluster = require('node:cluster');
const crypto = require('node:crypto');
const os = require('node:os');

const [host, port, redisHost, redisPort, app, username, apiKey] = process.argv.slice(2);
const workers = Number(process.env.WORKERS) || os.availableParallelism();

if (cluster.isPrimary && workers > 1) {
  for (let i = 0; i < workers; i++) cluster.fork();
  cluster.on('exit', () => process.exit(1)); // the benchmark sees that its server is gone
} else {
  serve();
}

function serve() {
  const express = require('express');
  const Redis = require('ioredis');
  const { Pool } = require('undici');

  const leaseMs = 35 * 1000;
  const retentionMs = 30 * 24 * 3600 * 1000;
  // release takes a claim back, but only its own.
  const release = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

  const redis = new Redis({
    host: redisHost, port: Number(redisPort), enableAutoPipelining: true, commandTimeout: 500, maxRetriesPerRequest: 1,
  });
  redis.on('error', (err) => console.error(err));
  const upstream = new Pool(app, { connections: 128, keepAliveTimeout: 3600e3, keepAliveMaxTimeout: 3600e3 });

  // crypto.hash, of Node 20.12, does in one call what createHash does in three.
  const md5 = crypto.hash
    ? (text) => crypto.hash('md5', text)
    : (text) => crypto.createHash('md5').update(text).digest('hex');

  const signed = (refId, sign) => {
    if (typeof sign !== 'string') return false;
    const given = Buffer.from(sign.toLowerCase());
    const right = Buffer.from(md5(username + apiKey + refId));
    return given.length === right.length && crypto.timingSafeEqual(given, right);
  };

  const end = (res, status, headers) => {
    res.writeHead(status, { 'Content-Length': 0, ...headers });
    res.end();
  };

  const callback = async (req, res) => {
    let data;
    try {
      data = JSON.parse(req.body.toString())?.data;
    } catch {
      // answered below
    }
    if (typeof data !== 'object' || data === null) return end(res, 400);
    const { ref_id: refId, sign, status } = data;
    if (typeof refId !== 'string' || refId === '' || Buffer.byteLength(refId) > 255) return end(res, 422);
    if (!signed(refId, sign)) return end(res, 403);
    if (status !== '0' && status !== '1' && status !== '2') return end(res, 422);

    const key = `peer:test:${refId}`;
    const claim = `claimed:${crypto.randomUUID()}`;
    let held;
    try {
      held = await redis.set(key, claim, 'PX', leaseMs, 'NX', 'GET');
    } catch {
      return end(res, 503, { 'Retry-After': '5' });
    }
    if (held !== null) {
      const accepted = /^accepted:(\d+)$/.exec(held);
      if (!accepted) return end(res, 409, { 'Retry-After': '5' });
      return end(res, Number(accepted[1]), { 'Idempotent-Replayed': 'true' });
    }

    let answer, body;
    try {
      answer = await upstream.request({
        method: 'POST',
        path: req.originalUrl,
        headers: {
          'Content-Type': 'application/json',
          'Idempotency-Key': `test:${encodeURIComponent(refId)}:${status}`,
          'Iak-Account': 'test',
          'Iak-Attempt': '1',
        },
        body: req.body,
        bodyTimeout: 30e3,
        headersTimeout: 30e3,
      });
      body = Buffer.from(await answer.body.arrayBuffer());
    } catch {
      return end(res, 502); // it may have acted: the claim stays until its lease is over
    }
    const settled = answer.statusCode >= 200 && answer.statusCode < 300
      ? redis.set(key, `accepted:${answer.statusCode}`, 'PX', retentionMs)
      : redis.eval(release, 1, key, claim);
    await settled.catch((err) => console.error(err));
    res.writeHead(answer.statusCode, {
      'Content-Type': answer.headers['content-type'] ?? 'text/plain', 'Content-Length': body.length,
    });
    res.end(body);
  };

  const site = express();
  site.disable('x-powered-by');
  site.disable('etag');
  site.post('/iak/callback', express.raw({ type: () => true, limit: '64kb' }), callback);
  const server = site.listen(Number(port), host, 4096);
  server.keepAliveTimeout = 3600e3; // no connection ends during a run
}
