'use strict';
// Upgrades: the handshake reaches the code, and the socket is the call.

const assert = require('node:assert/strict');
const { createHash } = require('node:crypto');
const http = require('node:http');
const { ready, testIf } = require('../support/fixtures.js');
const { until } = require('../support/http.js');

const test = testIf('upgrade');

function handshake(f, path = '/') {
  const key = Buffer.from('0123456789abcdef').toString('base64');
  const headers = {
    connection: 'Upgrade', upgrade: 'websocket', 'sec-websocket-key': key, 'sec-websocket-version': '13',
    'x-epsilon-request-id': 'upgrade-01',
  };
  return new Promise((resolve, reject) => {
    const req = http.get({ socketPath: f.callsSocket, path, headers });
    req.on('upgrade', (res, socket, head) => resolve({ res, socket, head, key }));
    req.on('response', (res) => resolve({ res: res.resume() }));
    req.on('error', reject);
  });
}

test('an upgraded socket is one call in both directions', async (t) => {
  const f = await ready(t, 'upgrade');
  const { res, socket, key } = await handshake(f);
  const accept = createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
  assert.deepEqual([res.statusCode, res.headers['sec-websocket-accept']], [101, accept]);
  socket.write('ping');
  assert.equal(String(await new Promise((resolve) => socket.once('data', resolve))), 'ping');
  assert.equal((await f.health()).active, 1);
  assert.equal((await f.record((r) => r.message === 'echo ping')).request_id, 'upgrade-01');
  socket.end();
  await until(async () => (await f.health()).active === 0, 'the end of the call');
});

test('a reset by the caller keeps the instance', async (t) => {
  const f = await ready(t, 'upgrade');
  const { socket } = await handshake(f);
  socket.write('x');
  socket.destroy();
  await until(async () => (await f.health()).active === 0, 'the end of the call');
  assert.equal((await f.call()).body, 'plain');
});

test('an upgrade that throws before its response fails', async (t) => {
  const f = await ready(t, 'upgrade');
  const { res } = await handshake(f, '/throws');
  assert.deepEqual([res.statusCode, res.headers['x-epsilon-outcome']], [500, 'threw']);
  assert.equal((await f.record((r) => r.level === 'error')).request_id, 'upgrade-01');
  await until(async () => (await f.health()).active === 0, 'the end of the call');
});

test('an upgrade that throws after its response is cut', async (t) => {
  const f = await ready(t, 'upgrade');
  const { socket } = await handshake(f, '/throws-late');
  socket.resume();
  await new Promise((resolve) => socket.on('close', resolve));
  await until(async () => (await f.health()).active === 0, 'the end of the call');
});

test('without `upgrade` the handshake is an ordinary request', async (t) => {
  const f = await ready(t, 'upgrade-none');
  const { res } = await handshake(f);
  assert.equal(res.statusCode, 426);
});
