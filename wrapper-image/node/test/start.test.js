'use strict';
// From the process's first moment to a function that serves: control socket, `/init`, module kinds, failures.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const { until } = require('./support/http.js');
const { launch, project, ready, waiting } = require('./support/process.js');

test('waits for init, then serves', async (t) => {
  const f = await waiting(t, { 'index.js': 'exports.f = (req, res) => res.send("Hello");' });
  assert.deepEqual(await f.health(), { state: 'waiting', active: 0, calls: [] });
  assert.equal(fs.existsSync(f.callsSocket), false);
  const { status, json } = await f.init({ export: 'f' });
  assert.deepEqual([status, json.data.signature], [200, 'express']);
  assert.ok(json.data.load_ms > 0);
  assert.equal((await f.call()).body, 'Hello'); // at once: calls.sock listens when init has responded
  assert.deepEqual(await f.health(), { state: 'ready', active: 0, calls: [] });
});

test('a second init is refused', async (t) => {
  const f = await ready(t, 'exports.f = (req, res) => res.send("first"); exports.g = () => {};');
  const { status, json } = await f.init({ export: 'g' });
  assert.deepEqual([status, json.error.code], [409, 'ALREADY_STARTED']);
  assert.equal((await f.call()).body, 'first');
});

test('sockets are open to an agent of another user, and replace stale ones', async (t) => {
  const f = await ready(t, 'exports.f = (req, res) => res.send("x");');
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

const HELLO = '(req, res) => res.send("Hello")';
for (const [what, files, spec] of [
  ['CommonJS', { 'index.js': `exports.f = ${HELLO}` }],
  ['CommonJS, computed names', { 'index.js': `for (const n of ["e", "f"]) exports[n] = ${HELLO}` }],
  ['CommonJS that is a function', { 'index.js': `module.exports = ${HELLO}` }, { export: 'default' }],
  ['{ func, config }', { 'index.js': `exports.f = { func: ${HELLO}, config: {} }` }],
  ['{ definition }', { 'index.js': `exports.f = { definition: ${HELLO} }` }],
  ['ES module by extension', { 'main.mjs': `export const f = ${HELLO}` }, { entry: 'main.mjs' }],
  ['ES module by package.json', { 'package.json': '{"type":"module"}', 'index.js': `import "node:fs"; export const f = ${HELLO}` }],
  ['ES module by its syntax', { 'index.js': `import "node:fs"; export const f = ${HELLO}` }],
  ['ES module with top-level await', { 'index.mjs': `await null; export const f = ${HELLO}` }, { entry: 'index.mjs' }],
  ['ES module, default export', { 'index.mjs': `export default ${HELLO}` }, { entry: 'index.mjs', export: 'default' }],
  ['CommonJS that requires an ES module', { 'index.js': 'exports.f = require("./m.mjs").f', 'm.mjs': `export const f = ${HELLO}` }],
  ['TypeScript', { 'src/f.ts': `import { type A, word } from "./a.ts"; export const f = async (req: any, res: any): Promise<void> => { const w: A = word; res.send(w as string) }`, 'src/a.ts': 'export type A = string; export const word: A = "Hello";' }, { entry: 'src/f.ts' }],
  ['TypeScript as CommonJS', { 'f.cts': `const x: number = 1; exports.f = ${HELLO}` }, { entry: 'f.cts' }],
  ['fetch', { 'index.mjs': 'export default { fetch: () => new Response("Hello") }' }, { entry: 'index.mjs', export: 'default' }],
  ['fetch under a name', { 'index.js': 'exports.f = { fetch: () => new Response("Hello") }' }],
  ['handler is Lambda', { 'index.js': 'exports.handler = async (event) => ({ statusCode: 200, body: "Hello" })' }, { export: 'handler' }],
  ['Lambda by choice', { 'index.js': 'exports.f = async (event) => ({ statusCode: 200, body: "Hello" })' }, { signature: 'lambda' }],
  ['handler with func is Express', { 'index.js': `exports.handler = { func: ${HELLO} }` }, { export: 'handler' }],
]) {
  test(`loads ${what}`, async (t) => {
    const f = await ready(t, files, { export: 'f', ...spec });
    const answer = await f.call();
    assert.deepEqual([answer.status, answer.body], [200, 'Hello']);
    assert.equal(f.err, '');
    assert.deepEqual(f.records(), []); // no warning of Node's own either
  });
}

for (const [what, files, spec, message] of [
  ['throws', { 'index.js': 'null.x' }, {}, /Cannot read properties of null/],
  ['has a syntax error', { 'index.js': 'const a = 1;\nfoo bar' }, {}, /Unexpected identifier/],
  ['requires what is not there', { 'index.js': 'require("not-there")' }, {}, /Cannot find module 'not-there'/],
  ['is not there', { 'other.js': '' }, {}, /`index.js` does not exist/],
  ['exports nothing', { 'index.js': '' }, {}, /exports no function `f`; it exports no function/],
  ['exports something else', { 'index.js': 'exports.g = () => {}; exports.n = 1; exports.C = class {}' }, {}, /no function `f`; it exports `g`$/],
  ['has only inherited members of that name', { 'index.js': 'exports.g = () => {}' }, { export: 'constructor' }, /no function `constructor`/],
  ['is asked for __proto__', { 'index.js': 'exports.g = () => {}' }, { export: '__proto__' }, /no function `__proto__`/],
  ['rejects while it awaits', { 'index.mjs': 'await Promise.reject(new Error("no database"))' }, { entry: 'index.mjs' }, /no database/],
  ['leaves a rejection behind', { 'index.js': 'Promise.reject(new Error("stray")); exports.f = () => {}' }, {}, /stray/],
  ['throws a text', { 'index.js': 'throw "text"' }, {}, /text/],
]) {
  test(`init fails when the code ${what}`, async (t) => {
    const f = await waiting(t, files);
    const { status, json } = await f.init({ export: 'f', ...spec });
    assert.deepEqual([status, json.error.code], [422, 'FUNCTION_INIT_FAILED']);
    assert.match(json.error.message, message);
    assert.equal(typeof json.error.stack, 'string');
    assert.doesNotMatch(json.error.stack, /wrapper-image|node:internal/);
    assert.equal((await f.health()).state, 'failed');
    assert.match((await f.record((r) => r.level === 'error')).message, message);
    assert.equal((await f.init({ export: 'f' })).status, 409);
  });
}

test('a syntax error says where', async (t) => {
  const f = await waiting(t, { 'index.js': 'const a = 1;\nfoo bar' });
  const { json } = await f.init({ export: 'f' });
  assert.match(json.error.stack, /index\.js:2\nfoo bar\n/);
});

test('code that exits while loading ends the process', async (t) => {
  const f = await waiting(t, { 'index.js': 'process.exit(7)' });
  await assert.rejects(f.init({ export: 'f' }));
  assert.deepEqual(await f.exit, { code: 7, signal: null });
  assert.match(f.records()[0].message, /ended the process with exit code 7/);
});

test('init sets environment and folder, and user code does not see the wrapper\'s own variables', async (t) => {
  const f = await ready(t, 'exports.f = (req, res) => res.json([process.env.CURRENCY, process.cwd(), Object.keys(process.env).filter((k) => k.startsWith("EPSILON"))]);', { export: 'f', env: { CURRENCY: 'EUR' } });
  assert.deepEqual(JSON.parse((await f.call()).body), ['EUR', fs.realpathSync(f.root), []]);
});

test('require.main is not the function, so `if (require.main === module)` does not run', async (t) => {
  const f = await ready(t, 'if (require.main === module) throw new Error("main"); exports.f = (req, res) => res.send("x");');
  assert.equal((await f.call()).body, 'x');
});

test('an empty folder counts as not mounted', async (t) => {
  const f = await waiting(t);
  const { status, json } = await f.init({ export: 'f' });
  assert.deepEqual([status, json.error.code], [409, 'NOT_MOUNTED']);
  assert.equal((await f.health()).state, 'waiting');
  fs.writeFileSync(path.join(f.root, 'index.js'), `exports.f = ${HELLO}`);
  assert.equal((await f.init({ export: 'f' })).status, 200);
  assert.equal((await f.call()).body, 'Hello');
});

test('warm responds after the warm-up and fails after start', async (t) => {
  const f = await waiting(t, { 'index.js': `exports.f = ${HELLO}` });
  const warm = await f.control({ path: '/warm' });
  assert.deepEqual([warm.status, warm.json], [200, { data: { state: 'waiting' } }]);
  assert.deepEqual(fs.readdirSync(f.sockets), ['control.sock']); // the warm-up leaves no files
  assert.deepEqual(f.records(), []);
  assert.equal((await f.init({ export: 'f' })).status, 200);
  const late = await f.control({ path: '/warm' });
  assert.deepEqual([late.status, late.json.error.code], [409, 'ALREADY_STARTED']);
});

test('init does not wait for the warm-up', async (t) => {
  const f = await waiting(t, { 'index.js': 'exports.f = (req, res) => res.send(process.cwd());' });
  const warm = f.control({ path: '/warm' });
  assert.equal((await f.init({ export: 'f' })).status, 200);
  assert.ok([200, 409].includes((await warm).status)); // either may finish first
  assert.equal((await f.call()).body, fs.realpathSync(f.root));
});

for (const [what, options, status] of [
  ['an unknown path', { path: '/nothing' }, 404],
  ['the wrong method', { path: '/init' }, 404],
  ['no JSON', { method: 'POST', path: '/init', body: '{' }, 400],
  ['no object', { method: 'POST', path: '/init', body: 'null' }, 400],
  ['a missing key', { method: 'POST', path: '/init', body: '{"function":"f","entry":"index.js"}' }, 400],
  ['an unknown signature', { method: 'POST', path: '/init', body: '{"function":"f","entry":"index.js","export":"f","signature":"grpc"}' }, 400],
  ['a body without end', { method: 'POST', path: '/init', body: Buffer.alloc(2_000_000, 32) }, 400],
]) {
  test(`control refuses ${what}`, async (t) => {
    const f = await waiting(t);
    const answer = await f.control(options);
    assert.equal(answer.status, status);
    assert.equal(typeof answer.json.error.message, 'string');
    assert.equal((await f.health()).state, 'waiting'); // and can still be started
  });
}

test('callers cannot reach the control socket', async (t) => {
  const f = await ready(t, 'exports.f = (req, res) => res.send(req.url);');
  for (const path of ['/init', '/health', 'http://control/init', '/../control.sock']) {
    const answer = await f.call({ method: 'POST', path });
    assert.deepEqual([answer.status, answer.body], [200, path]);
  }
});

test('without sockets it is a plain web server', async (t) => {
  const root = project(t, { 'index.js': 'exports.f = (req, res) => { console.log("seen"); res.send("Hello"); }' });
  const spec = JSON.stringify({ function: 'f', entry: 'index.js', export: 'f', signature: 'auto', timeout_ms: 1000, concurrency: 1 });
  const f = launch(t, { EPSILON_FUNCTION: spec, PORT: '0' }, root);
  const [, port] = await until(() => f.out.match(/`f` \(express\) listens on port (\d+)\./), 'the port');
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
  ['with a function that does not load', { EPSILON_FUNCTION: '{"function":"f","entry":"index.js","export":"f"}' }, 1, /`index.js` does not exist/],
  ['with a function that is no JSON', { EPSILON_FUNCTION: '{' }, 1, /JSON/],
]) {
  test(`a plain start ${what} ends with a reason`, async (t) => {
    const f = launch(t, env, project(t, {}));
    assert.deepEqual(await f.exit, { code, signal: null });
    assert.match(f.out, message);
  });
}
