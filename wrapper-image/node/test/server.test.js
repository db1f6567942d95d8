'use strict';
// The listener's own settings: no timer cuts a call, idle connections stay, large heads pass.

const assert = require('node:assert/strict');
const net = require('node:net');
const { test } = require('node:test');
const { callServer } = require('../lib/server.js');
const { serve } = require('./support/serve.js');

const target = { func() {}, signature: 'express', parseBody: true };
const settings = (onSocket) => {
  const { timeout, requestTimeout, headersTimeout, keepAliveTimeout } = callServer({}, { root: '/', bodyLimit: 1 }, target, { onSocket });
  return { timeout, requestTimeout, headersTimeout, keepAliveTimeout };
};

test('a unix socket has no timers', () => {
  assert.deepEqual(settings(true), { timeout: 0, requestTimeout: 0, headersTimeout: 0, keepAliveTimeout: 0 });
});

test('on TCP only heads and idle connections have a limit', () => {
  assert.deepEqual(settings(false), { timeout: 0, requestTimeout: 0, headersTimeout: 60_000, keepAliveTimeout: 75_000 });
});

test('a head of 400 KiB passes', async (t) => {
  const f = await serve(t, (req, res) => res.send(String(req.get('x-large').length)));
  assert.equal((await f.call({ headers: { 'x-large': 'x'.repeat(400 * 1024) } })).body, '409600');
});

test('two requests in one packet are two calls', async (t) => {
  const f = await serve(t, (req, res) => res.send(req.path));
  const socket = net.connect(f.socket);
  let seen = '';
  socket.on('data', (chunk) => (seen += chunk));
  socket.end('GET /one HTTP/1.1\r\nHost: x\r\n\r\nGET /two HTTP/1.1\r\nHost: x\r\n\r\n');
  await new Promise((resolve) => socket.on('close', resolve));
  assert.match(seen, /\/one[^]*\/two/);
});

test('data other than HTTP gets a 400', async (t) => {
  const f = await serve(t, (req, res) => res.send('fine'));
  for (const junk of ['\0\0\0\r\n\r\n', 'GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n', 'GET / HTTP/9.9\r\n\r\n']) {
    const socket = net.connect(f.socket);
    let seen = '';
    socket.on('data', (chunk) => (seen += chunk));
    socket.write(junk);
    await new Promise((resolve) => socket.on('close', resolve));
    assert.match(seen, /^HTTP\/1\.1 400 /);
  }
  assert.equal((await f.call()).body, 'fine');
  assert.equal(f.instance.active, 0);
});
