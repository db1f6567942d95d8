'use strict';
// What Node itself brings to the start: kinds of modules and exports, and failures of them. What any language's
// start does is in ../../contract/test/start.test.js.

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { ready, waiting } = require('./support/process.js');

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

test('require.main is not the function, so `if (require.main === module)` does not run', async (t) => {
  const f = await ready(t, 'if (require.main === module) throw new Error("main"); exports.f = (req, res) => res.send("x");');
  assert.equal((await f.call()).body, 'x');
});
