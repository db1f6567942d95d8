'use strict';
// A call ends when its handler has settled: each response that ends before is reported to the agent, and no other.

const assert = require('node:assert/strict');
const { ready, testIf, waiting } = require('../support/fixtures.js');
const { until } = require('../support/http.js');
const { reportedBy, watch } = require('../support/unsettled.js');

const test = testIf('work after the answer');
const over = (f) => until(async () => (await f.health()).active === 0, 'the end of the call');

test('a handler that settles with its answer is not reported', async (t) => {
  const f = await ready(t, 'unsettled');
  const reported = await watch(t, f);
  assert.deepEqual((await reportedBy(f, reported, 'settles-1')).reported, []);
  const { active, calls } = await f.health();
  assert.deepEqual([active, calls], [0, []]);
});

test('a handler that goes on after its answer is reported, and its call lasts', async (t) => {
  const f = await ready(t, 'unsettled');
  const reported = await watch(t, f);
  assert.deepEqual((await reportedBy(f, reported, 'goes-on-1', { path: '/goes-on' })).reported, ['goes-on-1']);
  const { active, calls } = await f.health();
  assert.deepEqual([active, calls], [1, ['goes-on-1']]);
  await f.call({ path: '/open' });
  await over(f);
});

test('a later connection takes over', async (t) => {
  const f = await ready(t, 'unsettled');
  const first = await watch(t, f);
  const second = await watch(t, f);
  assert.deepEqual((await reportedBy(f, second, 'takes-over', { path: '/a-moment' })).reported, ['takes-over']);
  assert.deepEqual([...first], []);
});

test('unsettled works before init; other upgrades are unknown', async (t) => {
  const f = await waiting(t, 'unsettled');
  const reported = await watch(t, f);
  await f.init({ export: 'f' });
  assert.deepEqual((await reportedBy(f, reported, 'watched-1', { path: '/a-moment' })).reported, ['watched-1']);
  for (const [path, upgrade] of [['/unsettled', 'websocket'], ['/health', 'unsettled']]) {
    const answer = await f.control({ path, headers: { connection: 'Upgrade', upgrade } }).catch((err) => err);
    assert.ok(answer instanceof Error || answer.status === 404); // an answer without JSON
  }
  assert.equal((await f.control({ path: '/unsettled' })).status, 404);
});
