'use strict';
// Failures of user code: the caller's response, the log line, and whether the instance stays.

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { ready, shown, testIf, waiting } = require('../support/fixtures.js');
const { until } = require('../support/http.js');

const ID = { 'x-epsilon-request-id': 'fault-0001' };
const stays = async (f) => {
  await until(async () => (await f.health()).active === 0, 'the end of the call');
  assert.equal((await f.call({ path: '/fine' })).body, 'fine');
};

for (const [what, path] of [
  ['throws', '/throws'],
  ['throws after it set headers', '/throws-after-headers'],
  ['throws after a wait', '/throws-later'],
]) {
  test(`a handler that ${what} gets its caller a 500 and stays`, async (t) => {
    const f = await ready(t, 'faults');
    const answer = await f.call({ path, headers: ID });
    assert.equal(answer.status, 500);
    assert.equal(answer.headers['x-epsilon-outcome'], 'threw');
    assert.equal(answer.headers['x-secret'], undefined);
    assert.equal(answer.headers['content-type'], 'application/json');
    assert.deepEqual(JSON.parse(answer.body), { error: {
      type: 'function', code: 'FUNCTION_ERROR', message: '`f` threw an error', hint: '`epsilon logs f` shows why', request_id: 'fault-0001',
    } });
    const record = await f.record((r) => r.level === 'error');
    assert.match(record.message, shown('throws'));
    assert.equal(record.request_id, 'fault-0001');
    await stays(f);
  });
}

test('an error after the head cuts the connection and the instance stays', async (t) => {
  const f = await ready(t, 'faults');
  await assert.rejects(f.call({ path: '/throws-after-the-head', headers: ID }), { code: 'ECONNRESET' });
  assert.match((await f.record((r) => r.level === 'error')).message, /late/);
  await stays(f);
});

testIf('work after the answer')('an error after the response is only logged', async (t) => {
  const f = await ready(t, 'faults');
  assert.equal((await f.call({ path: '/throws-after-the-answer', headers: ID })).body, 'done');
  assert.match((await f.record((r) => r.level === 'error' && r.request_id === 'fault-0001')).message, /afterwards/);
  await stays(f);
});

testIf('no answer')('a handler that ends without a response is logged', async (t) => {
  const f = await ready(t, 'faults');
  const open = f.call({ path: '/no-answer', headers: { ...ID, 'x-epsilon-deadline-ms': '100' } });
  const record = await f.record((r) => r.level === 'warn' && r.request_id === 'fault-0001');
  assert.match(record.message, /ended without an answer/);
  assert.equal((await f.health()).active, 1);
  f.child.kill('SIGKILL');
  await assert.rejects(open);
});

test('an exit in a handler is logged with its call, after what was printed', async (t) => {
  const f = await ready(t, 'faults');
  await assert.rejects(f.call({ path: '/exits', headers: ID }), { code: 'ECONNRESET' });
  assert.deepEqual(await f.exit, { code: 0, signal: null });
  assert.deepEqual(f.records().map((r) => [r.level, r.request_id, r.message]), [
    ['info', 'fault-0001', 'before'],
    ['info', 'fault-0001', 'unfinished'],
    ['error', 'fault-0001', 'The code ended the process with exit code 0.'],
  ]);
});

test('an uncaught exception is logged with its call and ends the process', async (t) => {
  const f = await ready(t, 'faults');
  await assert.rejects(f.call({ path: '/uncaught', headers: ID }), { code: 'ECONNRESET' });
  assert.deepEqual(await f.exit, { code: 1, signal: null });
  const [record] = f.records();
  assert.match(record.message, shown('throws'));
  assert.deepEqual([record.level, record.request_id], ['error', 'fault-0001']);
});

test('a failing call does not affect others', async (t) => {
  const f = await ready(t, 'faults', { concurrency: 10 });
  const answers = await Promise.all(Array.from({ length: 10 }, (_, n) => f.call({ path: `/every-second?n=${n}` })));
  assert.deepEqual(answers.map((a) => a.status), answers.map((_, n) => (n % 2 ? 500 : 200)));
  await stays(f);
});

test('SIGTERM: no new connection, running calls end, exit 0', async (t) => {
  const f = await ready(t, 'faults');
  const open = f.call({ path: '/slow' });
  await until(async () => (await f.health()).active === 1, 'the call');
  f.child.kill('SIGTERM');
  assert.equal((await open).body, 'ab');
  assert.deepEqual(await f.exit, { code: 0, signal: null });
  assert.deepEqual(f.records(), []);
});

test('SIGTERM while waiting for init ends at once', async (t) => {
  const f = await waiting(t);
  f.child.kill('SIGTERM');
  assert.deepEqual(await f.exit, { code: 0, signal: null });
});
