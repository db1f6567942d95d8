'use strict';
// Bodies stream both ways: an answer's first part arrives while the function still runs, a request's first part
// reaches the function before the last is sent, and a caller that hangs up ends the call.

const assert = require('node:assert/strict');
const http = require('node:http');
const { test } = require('node:test');
const { ready } = require('../support/fixtures.js');
const { until } = require('../support/http.js');

const over = (f) => until(async () => (await f.health()).active === 0, 'the end of the call');
const next = (stream) => new Promise((resolve, reject) => stream.once('data', (chunk) => resolve(String(chunk))).once('error', reject));

test('an answer arrives in parts', async (t) => {
  const f = await ready(t, 'streaming', { concurrency: 2 });
  const answer = await f.head({ path: '/parts' });
  assert.equal(await next(answer), 'one ');
  assert.equal((await f.health()).active, 1);
  const rest = next(answer);
  await f.call({ path: '/go-on' });
  assert.equal(await rest, 'two');
  await over(f);
});

test('a request arrives in parts', async (t) => {
  const f = await ready(t, 'streaming');
  const req = http.request({ socketPath: f.callsSocket, method: 'POST', path: '/' });
  req.write('first');
  const answer = await new Promise((resolve, reject) => req.on('response', resolve).on('error', reject));
  assert.equal(await next(answer), 'first');
  const rest = next(answer);
  req.end('second');
  assert.equal(await rest, 'second');
  await over(f);
});

test('a large body passes both ways', async (t) => {
  const f = await ready(t, 'streaming');
  const body = Buffer.alloc(8 * 1024 * 1024, 'abcdefg');
  const answer = await f.call({ method: 'POST', body });
  assert.ok(answer.bytes.equals(body), `${answer.status}, ${answer.bytes.length} bytes`);
});

test('a caller that hangs up does not end the instance', async (t) => {
  const f = await ready(t, 'streaming');
  const answer = await f.head({ path: '/parts' });
  await next(answer);
  answer.destroy();
  await over(f);
  assert.equal((await f.call({ method: 'POST', body: 'again' })).body, 'again');
});
