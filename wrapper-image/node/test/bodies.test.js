'use strict';
// Bodies of `(req, res)` functions: parsed when code first reads them, within limits that hold before memory is taken,
// while the request stays the stream that plain Node gives.

const assert = require('node:assert/strict');
const net = require('node:net');
const { test } = require('node:test');
const zlib = require('node:zlib');
const express = require('express');
const { BodyMemory } = require('../lib/body/memory.js');
const { head, until } = require('./support/http.js');
const { serve } = require('./support/serve.js');

const post = (body, type = 'application/json', headers = {}) => ({ method: 'POST', headers: { 'content-type': type, ...headers }, body });
const gzip = (text) => zlib.gzipSync(text);
const MiB = 1024 * 1024;
const lists = (bytes) => `[${'[],'.repeat(bytes / 3 - 1)}[]]`;

for (const [what, request, status, code, message, hint, bodyLimit = 1000] of [
  ['malformed JSON', post('{"a":'), 400, 'BAD_REQUEST', /Unexpected end of JSON input/, null],
  ['an unknown charset', post('{}', 'application/json; charset=klingon'), 415, 'BAD_REQUEST', /charset "KLINGON"/, null],
  ['an unknown content encoding', post('{}', undefined, { 'content-encoding': 'zip' }), 415, 'BAD_REQUEST', /content encoding "zip"/, null],
  ['what is no gzip', post('{}', undefined, { 'content-encoding': 'gzip' }), 400, 'BAD_REQUEST', /incorrect header check/, null],
  ['half a gzip', post(gzip('{"a":1}').subarray(0, 20), undefined, { 'content-encoding': 'gzip' }), 400, 'BAD_REQUEST', /unexpected end of file/, null],
  ['a body over the limit', post(`"${'x'.repeat(2000)}"`), 413, 'BODY_TOO_LARGE', /larger than 1000 bytes/, /maxBody/],
  ['a chunked body over the limit', post((req) => { req.write(`"${'x'.repeat(900)}`); req.end(`${'x'.repeat(900)}"`); }), 413, 'BODY_TOO_LARGE', /larger than 1000 bytes/, /maxBody/],
  ['an unpacked body over the limit', post(gzip(Buffer.alloc(5000, 32)), undefined, { 'content-encoding': 'gzip' }), 413, 'BODY_TOO_LARGE', /larger than 1000 bytes/, /maxBody/],
  ['a Brotli body over the limit', post(zlib.brotliCompressSync(Buffer.alloc(5000, 32)), undefined, { 'content-encoding': 'br' }), 413, 'BODY_TOO_LARGE', /larger than 1000 bytes/, /maxBody/],
  ['a form of too many fields', post('a&'.repeat(1000), 'application/x-www-form-urlencoded'), 413, 'BODY_TOO_LARGE', /more than 1000 fields/, /rawBody/, 10_000],
  ['a form that is too deep', post(`a${'[b]'.repeat(40)}=1`, 'application/x-www-form-urlencoded'), 400, 'BAD_REQUEST', /depth/, null],
]) {
  test(`${what} is refused only when code reads it`, async (t) => {
    const f = await serve(t, (req, res) => res.json(req.path === '/reads' ? req.body : 'unread'), { bodyLimit });
    assert.equal((await f.call(request)).body, '"unread"');
    const answer = await f.call({ ...request, path: '/reads' });
    const { error } = JSON.parse(answer.body);
    assert.deepEqual([answer.status, error.code, answer.headers['x-epsilon-outcome']], [status, code, undefined]);
    assert.match(error.message, message);
    if (hint === null) assert.equal(error.hint, null);
    else assert.match(error.hint, hint);
    assert.match(error.request_id, /^[0-9a-f]{32}$/);
    assert.deepEqual(f.logged, []);
    await until(() => f.instance.active === 0, 'the end of the call');
  });
}

test('JSON with too many values is refused before parsing and keeps rawBody', async (t) => {
  t.mock.method(process, 'constrainedMemory', () => 1 * MiB); // 4096 values
  const f = await serve(t, (req, res) => res.json(req.path === '/raw' ? req.rawBody.length : req.body.length));
  const large = lists(30_000);
  const answer = await f.call(post(large));
  const { error } = JSON.parse(answer.body);
  assert.deepEqual([answer.status, error.code], [413, 'BODY_TOO_LARGE']);
  assert.match(error.message, /more than 4096 JSON values/);
  assert.match(error.hint, /`memory`/);
  assert.equal((await f.call({ ...post(large), path: '/raw' })).body, String(large.length));
  assert.equal((await f.call(post(lists(6000)))).body, '2000');
  assert.equal((await f.call(post(JSON.stringify(['x'.repeat(50_000)])))).body, '1'); // many bytes, few values
});

test('an unread body is not parsed', async (t) => {
  const f = await serve(t, (req, res) => res.send('fine'));
  const parsed = t.mock.method(JSON, 'parse');
  const inflated = t.mock.method(zlib, 'gunzipSync');
  assert.equal((await f.call(post(gzip('{"a":1}'), undefined, { 'content-encoding': 'gzip' }))).body, 'fine');
  assert.deepEqual([parsed.mock.callCount(), inflated.mock.callCount()], [0, 0]);
});

test('a body is parsed once and assignments stay', async (t) => {
  const f = await serve(t, (req, res) => {
    const isSame = req.body === req.body;
    req.body.b = 2;
    const changed = { ...req.body };
    req.body = 'mine';
    req.rawBody = 'raw';
    res.json([isSame, changed, req.body, req.rawBody, 'body' in req, Object.keys(req).includes('body')]);
  });
  assert.deepEqual(JSON.parse((await f.call(post('{"a":1}'))).body), [true, { a: 1, b: 2 }, 'mine', 'raw', true, true]);
});

test('code can catch a refusal and respond', async (t) => {
  const f = await serve(t, (req, res) => {
    try {
      res.json(req.body);
    } catch (err) {
      res.status(err.status).send(err.name);
    }
  }, { bodyLimit: 10 });
  const answer = await f.call(post(JSON.stringify('x'.repeat(20))));
  assert.deepEqual([answer.status, answer.body], [413, 'BodyRefused']);
});

/** Ways in which code reads a request itself; each returns what it read. */
const READERS = {
  'req.pipe(res)': (req, res) => void req.pipe(res),
  'for await': async (req, res) => {
    const chunks = [];
    for await (const chunk of req) chunks.push(chunk);
    res.end(Buffer.concat(chunks));
  },
  'data and end': (req, res) => {
    const chunks = [];
    req.on('data', (chunk) => chunks.push(chunk)).on('end', () => res.end(Buffer.concat(chunks)));
  },
  'readable and read()': (req, res) => {
    const chunks = [];
    req.on('readable', () => {
      for (let chunk = req.read(); chunk !== null; chunk = req.read()) chunks.push(chunk);
    });
    req.on('end', () => res.end(Buffer.concat(chunks)));
  },
  'later than the answer to a timer': async (req, res) => {
    await new Promise((resolve) => setTimeout(resolve, 5));
    req.pipe(res);
  },
  'after req.body was read': async (req, res) => {
    try {
      void req.body;
    } catch {
      // too large, or no JSON: it is still a stream
    }
    req.pipe(res);
  },
  'an application with a server of its own, as Fastify': (() => {
    const server = require('node:http').createServer((req, res) => void req.pipe(res));
    return (req, res) => void server.emit('request', req, res);
  })(),
  'Readable.toWeb': async (req, res) => {
    const body = require('node:stream').Readable.toWeb(req);
    res.end(Buffer.from(await new Response(body).arrayBuffer()));
  },
};
const BODIES = {
  small: Buffer.from('abc'),
  empty: Buffer.alloc(0),
  'larger than a stream\'s own mark': Buffer.alloc(300_000, 'ab'),
  'larger than the limit': Buffer.alloc(700_000, 'cd'),
};

for (const [how, read] of Object.entries(READERS)) {
  for (const [what, body] of Object.entries(BODIES)) {
    test(`${how} gets every byte of a body that is ${what}, sent whole or in chunks, of any type`, async (t) => {
      const f = await serve(t, read, { bodyLimit: 500_000 });
      for (const type of ['application/octet-stream', 'application/json', 'text/plain', 'multipart/form-data; boundary=b']) {
        const whole = await f.call(post(body, type));
        assert.ok(whole.bytes.equals(body), `${type}: ${whole.status} ${whole.body.slice(0, 200)}`);
        const chunked = await f.call(post((req) => {
          req.write(body.subarray(0, 10));
          setImmediate(() => req.end(body.subarray(10)));
        }, type));
        assert.ok(chunked.bytes.equals(body), `${type}, chunked: ${chunked.status}`);
      }
      await until(() => f.instance.active === 0, 'the end of the calls');
      assert.deepEqual(f.logged, []);
    });
  }
}

test('an octet-stream is a Buffer and a stream', async (t) => {
  const f = await serve(t, async (req, res) => {
    let streamed = 0;
    const { length } = req.body;
    for await (const chunk of req) streamed += chunk.length;
    res.json([Buffer.isBuffer(req.body), length, streamed, req.complete, req.readableEnded]);
  });
  assert.equal((await f.call(post(Buffer.alloc(100_000), 'application/octet-stream'))).body, '[true,100000,100000,true,true]');
});

test('the stream ends and closes as on plain Node', async (t) => {
  const seen = [];
  const f = await serve(t, (req, res) => {
    for (const event of ['end', 'close', 'aborted', 'error']) req.on(event, () => seen.push(event));
    req.resume().on('end', () => res.send(String(req.complete)));
  });
  assert.equal((await f.call(post('{"a":1}'))).body, 'true');
  await until(() => seen.includes('close'), 'close');
  assert.deepEqual(seen, ['end', 'close']);
});

test('expect: 100-continue is answered before the body comes', async (t) => {
  const f = await serve(t, (req, res) => res.json(req.body));
  const continued = Promise.withResolvers();
  const answer = await f.call(post((req) => {
    req.flushHeaders();
    req.once('continue', () => {
      continued.resolve();
      req.end('{"a":1}');
    });
  }, undefined, { expect: '100-continue' }));
  await continued.promise;
  assert.equal(answer.body, '{"a":1}');
});

for (const [what, func] of [
  ['express.json() inside a (req, res) function', (req, res) => express.json({ verify: (r) => (r.verified = true) })(req, res, () => res.json([req.verified, req.body]))],
  ['an Express application inside a (req, res) function', (() => {
    const app = express().use(express.json({ verify: (r) => (r.verified = true) }));
    app.post('/', (req, res) => res.json([req.verified, req.body]));
    return (req, res) => app(req, res);
  })()],
  ['a body parser after code has looked at req.body', (req, res) => {
    req.body.a = 2;
    express.json({ verify: (r) => (r.verified = true) })(req, res, () => res.json([req.verified, req.body]));
  }],
]) {
  test(`${what} parses the stream itself`, async (t) => {
    const f = await serve(t, func);
    assert.equal((await f.call(post('{"a":1}'))).body, '[true,{"a":1}]');
  });
}

test('an inner application without parser finds req.body', async (t) => {
  const app = express();
  app.post('/', (req, res) => res.json([req.body, req.rawBody.length]));
  const f = await serve(t, (req, res) => app(req, res));
  assert.equal((await f.call(post('{"a":1}'))).body, '[{"a":1},7]');
});

test('a refusal reaches a sending caller and keeps the connection', async (t) => {
  const f = await serve(t, (req, res) => res.json(req.body), { bodyLimit: 1000 });
  const socket = net.connect(f.socket);
  t.after(() => socket.destroy());
  let seen = '';
  socket.on('data', (bytes) => (seen += bytes));
  socket.write('POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 3000000\r\n\r\n');
  await until(() => seen.includes('BODY_TOO_LARGE'), 'the refusal');
  assert.match(seen, /^HTTP\/1\.1 413 /);
  seen = '';
  socket.write(Buffer.alloc(3_000_000));
  socket.write('GET / HTTP/1.1\r\nHost: a\r\n\r\n');
  await until(() => seen !== '', 'the answer to the next call');
  assert.match(seen, /^HTTP\/1\.1 200 /);
});

test('a large upload gets a response while it is sent', async (t) => {
  const f = await serve(t, (req, res) => {
    res.write('first ');
    req.resume().on('end', () => res.end('done'));
  }, { bodyLimit: 1000 });
  let upload;
  const answer = await head(f.socket, post((req) => {
    upload = req;
    req.write(Buffer.alloc(2000));
  }));
  let text = '';
  answer.on('data', (chunk) => (text += chunk));
  await until(() => text === 'first ', 'the first bytes');
  upload.end();
  await until(() => text === 'first done', 'the rest');
});

test('bodies above the memory share wait, and all are served', async (t) => {
  t.mock.method(process, 'constrainedMemory', () => 8 * MiB); // 1 MiB for bodies
  let inside = 0;
  let most = 0;
  const gates = [];
  const f = await serve(t, async (req, res) => {
    inside += 1;
    most = Math.max(most, inside);
    await new Promise((resolve) => gates.push(resolve));
    inside -= 1;
    res.send(String(req.body.length));
  }, { bodyLimit: MiB });
  const body = Buffer.alloc(400_000, 'x');
  const calls = Array.from({ length: 6 }, () => f.call(post(body, 'text/plain')));
  const small = f.call(post('small', 'text/plain')); // never waits
  for (let served = 0; served < 7; served += 1) (await until(() => gates.shift(), 'a call inside'))();
  assert.equal((await small).body, '5');
  for (const answer of await Promise.all(calls)) assert.equal(answer.body, '400000');
  assert.equal(most, 3);
});

test('a caller that disconnects while waiting reserves no memory', async (t) => {
  t.mock.method(process, 'constrainedMemory', () => 8 * MiB); // room for one
  const gates = [];
  const f = await serve(t, async (req, res) => {
    await new Promise((resolve) => gates.push(resolve));
    res.send(String(req.body.length));
  }, { bodyLimit: MiB });
  const send = () => f.call(post(Buffer.alloc(MiB, 'x'), 'text/plain'));
  for (let round = 0; round < 2; round += 1) {
    const inside = send();
    const open = await until(() => gates.shift(), 'the call inside');
    const gone = head(f.socket, post((req) => {
      req.write(Buffer.alloc(1000));
      until(() => f.instance.active === 2, 'the call that waits').then(() => req.destroy());
    }, 'text/plain', { 'content-length': String(MiB) }));
    await assert.rejects(gone);
    open();
    assert.equal((await inside).body, String(MiB));
    await until(() => f.instance.active === 0, 'the end of both');
  }
  assert.deepEqual(f.logged, []);
});

test('memory is granted first come, first served', async () => {
  const memory = new BodyMemory(MiB, 8 * MiB);
  assert.equal(memory.reserve(MiB), null);
  let granted = 0;
  for (const grant of [memory.reserve(MiB), memory.reserve(100_000)]) grant.then(() => (granted += 1));
  assert.equal(memory.reserve(10_000), null); // small ones never wait
  for (const [from, to, expected] of [[MiB, 70_000, 0], [70_000, 0, 1], [MiB, 0, 2]]) {
    memory.shrink(from, to);
    await null;
    assert.equal(granted, expected);
  }
});
