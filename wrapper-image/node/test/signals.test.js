'use strict';
// SIGTERM: running calls end, the code's own hooks run, and a signal handler of the code keeps control.

const assert = require('node:assert/strict');
const http = require('node:http');
const path = require('node:path');
const { test } = require('node:test');
const { until } = require('./support/http.js');
const { ready, waiting } = require('./support/process.js');

const CLEAN = { code: 0, signal: null };
const said = (f) => f.records().map((record) => record.message);

for (const [what, source, expected] of [
  ['no hook, though something keeps the process', 'setInterval(() => {}, 1000);', []],
  ['an `exit` hook', 'setInterval(() => {}, 1000); process.on("exit", (code) => console.log("exit " + code));', ['exit 0']],
  ['a hook that cleans up and exits', 'process.on("SIGTERM", () => { console.log("term"); setTimeout(() => { console.log("clean"); process.exit(0); }, 300); });', ['term', 'clean']],
  ['a hook that cleans up and lets the process end', 'const pool = setInterval(() => {}, 1000); process.on("SIGTERM", async () => { await new Promise((r) => setTimeout(r, 300)); clearInterval(pool); console.log("clean"); });', ['clean']],
  ['a hook of one time', 'process.once("SIGTERM", () => setTimeout(() => console.log("clean"), 300));', ['clean']],
  ['several hooks', 'for (const n of [1, 2]) process.on("SIGTERM", () => setTimeout(() => console.log("clean " + n), n * 50));', ['clean 1', 'clean 2']],
  ['a `beforeExit` hook', 'process.once("beforeExit", () => setTimeout(() => console.log("clean"), 50));', ['clean']],
  ['a `beforeExit` hook that something keeps from running', 'setInterval(() => {}, 1000); process.on("beforeExit", () => console.log("never"));', []],
]) {
  test(`${what}: SIGTERM ends the process with 0`, async (t) => {
    const f = await ready(t, `${source}\nexports.f = (req, res) => res.send("x");`);
    await f.call();
    f.child.kill('SIGTERM');
    assert.deepEqual(await f.exit, CLEAN);
    assert.deepEqual(said(f), expected);
  });
}

test('running calls and work after responses end first', async (t) => {
  const f = await ready(t, `exports.f = { fetch: async (request, env, ctx) => {
    console.log('inside');
    await new Promise((resolve) => setTimeout(resolve, 200));
    ctx.waitUntil(new Promise((resolve) => setTimeout(resolve, 200)).then(() => console.log('work done')));
    return new Response('answered');
  } };`);
  const answer = f.call();
  await f.record((record) => record.message === 'inside');
  f.child.kill('SIGTERM');
  assert.equal((await answer).body, 'answered');
  assert.equal((await f.health()).active, 1); // health still responds
  assert.deepEqual(await f.exit, CLEAN);
  assert.deepEqual(said(f), ['inside', 'work done']);
});

test('a hook and a running call both finish', async (t) => {
  const f = await ready(t, `
    process.on('SIGTERM', () => console.log('term'));
    exports.f = async (req, res) => { console.log('inside'); await new Promise((r) => setTimeout(r, 200)); res.send('answered'); };`);
  const answer = f.call();
  await f.record((record) => record.message === 'inside');
  f.child.kill('SIGTERM');
  assert.equal((await answer).body, 'answered');
  assert.deepEqual(await f.exit, CLEAN);
  assert.deepEqual(said(f), ['inside', 'term']);
});

test('a hook that never ends keeps the process without new calls', async (t) => {
  const f = await ready(t, 'process.on("SIGTERM", () => { console.log("term"); setInterval(() => {}, 1000); }); exports.f = (req, res) => res.send("x");');
  f.child.kill('SIGTERM');
  await f.record((record) => record.message === 'term');
  await until(() => f.call().then(() => false, () => true), 'the listener to be closed');
  assert.equal((await f.health()).active, 0);
  f.child.kill('SIGTERM'); // once more changes nothing
  f.child.kill('SIGKILL');
  assert.deepEqual(await f.exit, { code: null, signal: 'SIGKILL' });
});

test('connections of the agent do not keep the process', async (t) => {
  const f = await ready(t, 'process.on("SIGTERM", () => console.log("term")); exports.f = (req, res) => res.send("x");');
  const agent = new http.Agent({ keepAlive: true });
  const control = path.join(f.sockets, 'control.sock');
  for (const [socketPath, headers] of [[control, { connection: 'Upgrade', upgrade: 'unsettled' }], [control, {}], [f.callsSocket, {}]]) {
    await new Promise((resolve, reject) => {
      const req = http.get({ socketPath, agent, path: headers.upgrade ? '/unsettled' : '/health', headers });
      req.on('response', (res) => res.resume().on('end', resolve)).on('upgrade', resolve).on('error', reject);
    });
  }
  f.child.kill('SIGTERM');
  assert.deepEqual(await f.exit, CLEAN);
  agent.destroy();
  assert.deepEqual(said(f), ['term']);
});

test('a process that only waits ends at once', async (t) => {
  const f = await waiting(t);
  f.child.kill('SIGTERM');
  assert.deepEqual(await f.exit, CLEAN);
});

test('the exit code of a hook is kept', async (t) => {
  const f = await ready(t, 'process.on("SIGTERM", () => process.exit(3)); exports.f = (req, res) => res.send("x");');
  f.child.kill('SIGTERM');
  assert.deepEqual(await f.exit, { code: 3, signal: null });
});
