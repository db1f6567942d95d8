'use strict';
// From the process's first moment to a function that serves: control socket, `/init`, failures.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const { files, language, launch, project, ready, shown, waiting } = require('../support/fixtures.js');
const { until } = require('../support/http.js');

test('waits for init, then serves', async (t) => {
  const f = await waiting(t, 'hello');
  assert.deepEqual(await f.health(), { state: 'waiting', active: 0, calls: [] });
  assert.equal(fs.existsSync(f.callsSocket), false);
  const { status, json } = await f.init({ export: 'f' });
  assert.deepEqual([status, json.data.signature], [200, language.signature]);
  assert.ok(json.data.load_ms > 0);
  assert.equal((await f.call()).body, 'Hello'); // at once: calls.sock listens when init has responded
  assert.deepEqual(await f.health(), { state: 'ready', active: 0, calls: [] });
});

test('a second init is refused', async (t) => {
  const f = await ready(t, 'hello');
  const { status, json } = await f.init({ export: 'g' });
  assert.deepEqual([status, json.error.code], [409, 'ALREADY_STARTED']);
  assert.equal((await f.call()).body, 'Hello');
});

test('sockets are open to an agent of another user, and replace stale ones', async (t) => {
  const f = await ready(t, 'hello');
  for (const name of ['control.sock', 'calls.sock']) {
    assert.equal(fs.statSync(path.join(f.sockets, name)).mode & 0o777, 0o666);
  }
  f.child.kill('SIGKILL');
  await f.exit;
  assert.ok(fs.existsSync(f.callsSocket));
  const again = launch(t, { EPSILON_SOCKETS: f.sockets }, f.root);
  await until(() => f.health().catch(() => null), 'the new process');
  assert.equal((await f.init({ export: 'f' })).status, 200, again.out);
});

for (const [what, fixture, spec, expected = fixture] of [
  ['throws', 'load-throws'],
  ['has a syntax error', 'load-syntax'],
  ['requires what is not there', 'load-missing-module'],
  ['is not there', 'hello', { entry: `absent-${language.entry}` }, 'no-entry'],
  ['has no such export', 'hello', { export: 'absent' }, 'no-export'],
]) {
  test(`init fails when the code ${what}`, async (t) => {
    const f = await waiting(t, fixture);
    const { status, json } = await f.init({ export: 'f', ...spec });
    assert.deepEqual([status, json.error.code], [422, 'FUNCTION_INIT_FAILED']);
    assert.match(json.error.message, shown(expected));
    assert.equal(typeof json.error.stack, 'string');
    assert.equal((await f.health()).state, 'failed');
    assert.ok((await f.record((r) => r.level === 'error')).message.includes(json.error.message));
    assert.equal((await f.init({ export: 'f' })).status, 409);
  });
}

test('code that exits while loading ends the process', async (t) => {
  const f = await waiting(t, 'load-exits');
  await assert.rejects(f.init({ export: 'f' }));
  assert.deepEqual(await f.exit, { code: 7, signal: null });
  assert.match(f.records()[0].message, /ended the process with exit code 7/);
});

test('init sets environment and folder, and user code does not see the wrapper\'s own variables', async (t) => {
  const f = await ready(t, 'environment', { env: { CURRENCY: 'EUR' } });
  assert.deepEqual(JSON.parse((await f.call()).body), ['EUR', fs.realpathSync(f.root), []]);
});

test('an empty folder counts as not mounted', async (t) => {
  const f = await waiting(t);
  const { status, json } = await f.init({ export: 'f' });
  assert.deepEqual([status, json.error.code], [409, 'NOT_MOUNTED']);
  assert.equal((await f.health()).state, 'waiting');
  for (const [name, text] of Object.entries(files('hello'))) fs.writeFileSync(path.join(f.root, name), text);
  assert.equal((await f.init({ export: 'f' })).status, 200);
  assert.equal((await f.call()).body, 'Hello');
});

test('warm responds after the warm-up and fails after start', async (t) => {
  const f = await waiting(t, 'hello');
  const warm = await f.control({ path: '/warm' });
  assert.deepEqual([warm.status, warm.json], [200, { data: { state: 'waiting' } }]);
  assert.deepEqual(fs.readdirSync(f.sockets), ['control.sock']); // the warm-up leaves no files
  assert.deepEqual(f.records(), []);
  assert.equal((await f.init({ export: 'f' })).status, 200);
  const late = await f.control({ path: '/warm' });
  assert.deepEqual([late.status, late.json.error.code], [409, 'ALREADY_STARTED']);
});

test('init does not wait for the warm-up', async (t) => {
  const f = await waiting(t, 'environment');
  const warm = f.control({ path: '/warm' });
  assert.equal((await f.init({ export: 'f' })).status, 200);
  assert.ok([200, 409].includes((await warm).status)); // either may finish first
  assert.equal(JSON.parse((await f.call()).body)[1], fs.realpathSync(f.root));
});

const init = (body) => ({ method: 'POST', path: '/init', body });
for (const [what, options, status] of [
  ['an unknown path', { path: '/nothing' }, 404],
  ['the wrong method', { path: '/init' }, 404],
  ['no JSON', init('{'), 400],
  ['no object', init('null'), 400],
  ['a missing key', init(JSON.stringify({ function: 'f', entry: language.entry })), 400],
  ['an unknown signature', init(JSON.stringify({ function: 'f', entry: language.entry, export: 'f', signature: 'grpc' })), 400],
  ['a body without end', init(Buffer.alloc(2_000_000, 32)), 400],
]) {
  test(`control refuses ${what}`, async (t) => {
    const f = await waiting(t, 'hello');
    const answer = await f.control(options);
    assert.equal(answer.status, status);
    assert.equal(typeof answer.json.error.message, 'string');
    assert.equal((await f.health()).state, 'waiting'); // and can still be started
  });
}

test('callers cannot reach the control socket', async (t) => {
  const f = await ready(t, 'server');
  for (const target of ['/init', '/health', 'http://control/init', '/../control.sock']) {
    const answer = await f.call({ method: 'POST', path: target });
    assert.deepEqual([answer.status, answer.body], [200, target]);
  }
});

const plain = (more) => JSON.stringify({ function: 'f', entry: language.entry, export: 'f', ...more });

test('without sockets it is a plain web server', async (t) => {
  const spec = plain({ signature: 'auto', timeout_ms: 1000, concurrency: 1 });
  const f = launch(t, { EPSILON_FUNCTION: spec, PORT: '0' }, project(t, files('prints')));
  const [, signature, port] = await until(() => f.out.match(/`f` \((\w+)\) listens on port (\d+)\./), 'the port');
  assert.equal(signature, language.signature);
  const answer = await fetch(`http://127.0.0.1:${port}/`);
  assert.equal(await answer.text(), 'Hello');
  const id = answer.headers.get('x-epsilon-request-id');
  assert.match(id, /^[0-9a-f]{32}$/);
  await until(() => f.out.includes(`info  ${id} seen\n`), 'a line for people');
  f.child.kill('SIGTERM');
  assert.deepEqual(await f.exit, { code: 0, signal: null });
});

for (const [what, env, code, message] of [
  ['without a function', {}, 2, /set EPSILON_SOCKETS/],
  ['with a function that does not load', { EPSILON_FUNCTION: plain() }, 1, shown('no-entry')],
  ['with a function that is no JSON', { EPSILON_FUNCTION: '{' }, 1, /JSON/],
]) {
  test(`a plain start ${what} ends with a reason`, async (t) => {
    const f = launch(t, env, project(t, {}));
    assert.deepEqual(await f.exit, { code, signal: null });
    assert.match(f.out, message);
  });
}
