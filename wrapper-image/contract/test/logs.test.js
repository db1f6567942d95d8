'use strict';
// Log records: one per output, with level and the id of the call that wrote it.

const assert = require('node:assert/strict');
const http = require('node:http');
const { test } = require('node:test');
const { ready, shown } = require('../support/fixtures.js');
const { head, until } = require('../support/http.js');

const said = (f) => f.records().map((r) => [r.level, r.message]);
async function run(t, path) {
  const f = await ready(t, 'logs');
  await f.call({ path, headers: { 'x-epsilon-request-id': 'log-00001' } });
  await until(async () => (await f.health()).active === 0, 'the end of the call');
  return f;
}

test('a record has its level, its time and the id of its call', async (t) => {
  const f = await run(t, '/levels');
  assert.deepEqual(said(f), [['debug', 'a'], ['info', 'b'], ['warn', 'c'], ['error', 'd']]);
  for (const record of f.records()) {
    assert.equal(record.request_id, 'log-00001');
    assert.equal(new Date(record.time).toISOString(), record.time);
  }
});

test('every line of output is an RFC 7464 record', async (t) => {
  const f = await run(t, '/separators');
  for (const line of f.out.split('\n').slice(0, -1)) assert.match(line, /^\x1e\{.*\}$/);
  assert.equal(f.records()[0].message, 'a\nb\x1ec');
});

test('a stack stays in one record', async (t) => {
  const f = await run(t, '/stack');
  assert.equal(f.records().length, 1);
  assert.match(f.records()[0].message, shown('stack'));
});

test('raw writes become a record per line, the unfinished one at the end of the call', async (t) => {
  const f = await run(t, '/raw');
  assert.deepEqual(said(f), [['info', 'ab'], ['info', 'c'], ['info', ''], ['error', 'e'], ['info', 'd €'], ['info', 'last']]);
});

test('a very long message is bounded', async (t) => {
  const f = await run(t, '/long');
  const [long, raw] = f.records().map((r) => r.message);
  assert.match(long, /^x{65536}… \[934464 characters more\]$/);
  assert.match(raw, /^y{65536}… \[/);
});

test('lines carry the id of their own call with many calls at once', async (t) => {
  const f = await ready(t, 'logs-together', { concurrency: 50 });
  const call = (n) => f.call({ method: 'POST', path: `/?n=${n}`, body: 'x', headers: { 'x-epsilon-request-id': `call-${1000 + n}`, 'content-type': 'multipart/mixed' } });
  await Promise.all(Array.from({ length: 50 }, (_, n) => call(n)));
  await until(async () => (await f.health()).active === 0, 'the end of the calls');
  const records = f.records();
  assert.ok(records.length >= 50 * 5, records.length);
  for (const { message, request_id } of records) assert.equal(request_id, `call-${1000 + Number(message.split(' ')[0])}`, message);
  assert.equal(records.filter((r) => r.message.endsWith(' half and half')).length, 50);
});

test('the same connection serves calls of different ids', async (t) => {
  const f = await ready(t, 'logs-of-body');
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  t.after(() => agent.destroy());
  const sockets = new Set();
  for (const id of ['same-0001', 'same-0002']) {
    await new Promise((resolve) => {
      http.get({ socketPath: f.callsSocket, agent, headers: { 'x-epsilon-request-id': id } }, (res) => res.resume().on('end', resolve))
        .on('socket', (socket) => sockets.add(socket));
    });
  }
  assert.equal(sockets.size, 1);
  assert.deepEqual(f.records().map((r) => r.request_id), ['same-0001', 'same-0002']);
});

test('output while loading belongs to no call', async (t) => {
  const f = await ready(t, 'logs-of-load');
  await f.call();
  await f.record((r) => r.message === 'tick');
  for (const record of f.records()) assert.equal(Object.hasOwn(record, 'request_id'), false);
});

test('output of a child process passes as it is', async (t) => {
  assert.equal((await run(t, '/child')).out, 'from a child\n');
});

test('calls continue without a log reader', async (t) => {
  const f = await ready(t, 'prints');
  f.child.stdout.destroy();
  for (let n = 0; n < 5; n += 1) assert.equal((await f.call()).body, 'Hello');
  const open = await head(f.callsSocket, {});
  assert.equal(open.statusCode, 200);
});
