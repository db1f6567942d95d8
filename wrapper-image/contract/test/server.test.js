'use strict';
// HTTP/1.1 on `calls.sock`: large heads, pipelined requests, and what is no HTTP.

const assert = require('node:assert/strict');
const net = require('node:net');
const { test } = require('node:test');
const { ready } = require('../support/fixtures.js');

/** Everything that comes back for these bytes until the connection is closed. */
async function exchange(f, bytes, { end }) {
  const socket = net.connect(f.callsSocket);
  let seen = '';
  socket.on('data', (chunk) => (seen += chunk));
  if (end) socket.end(bytes);
  else socket.write(bytes);
  await new Promise((resolve) => socket.on('close', resolve));
  return seen;
}

test('a head of 400 KiB passes', async (t) => {
  const f = await ready(t, 'server');
  assert.equal((await f.call({ path: '/large', headers: { 'x-large': 'x'.repeat(400 * 1024) } })).body, '409600');
});

test('two requests in one packet are two calls', async (t) => {
  const f = await ready(t, 'server');
  const seen = await exchange(f, 'GET /one HTTP/1.1\r\nHost: x\r\n\r\nGET /two HTTP/1.1\r\nHost: x\r\n\r\n', { end: true });
  assert.match(seen, /\/one[^]*\/two/);
});

test('data other than HTTP gets a 400', async (t) => {
  const f = await ready(t, 'server');
  for (const junk of ['\0\0\0\r\n\r\n', 'GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n', 'GET / HTTP/9.9\r\n\r\n']) {
    assert.match(await exchange(f, junk, { end: false }), /^HTTP\/1\.1 400 /);
  }
  assert.equal((await f.call({ path: '/fine' })).body, '/fine');
  assert.equal((await f.health()).active, 0);
});
