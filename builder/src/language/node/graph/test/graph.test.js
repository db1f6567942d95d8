'use strict';
// Which change makes which function anew: tables of small projects.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { test } = require('node:test');
const { split } = require('../graph.js');

async function reached(t, files, names = ['a', 'b']) {
  const root = fs.mkdtempSync(path.join(os.tmpdir(), 'epsilon-graph-'));
  t.after(() => fs.rmSync(root, { recursive: true }));
  for (const [name, text] of Object.entries(files)) {
    fs.mkdirSync(path.dirname(path.join(root, name)), { recursive: true });
    fs.writeFileSync(path.join(root, name), text);
  }
  const entry = Object.keys(files)[0];
  const known = Object.keys(files).filter((name) => !name.endsWith('.json') && !name.includes('node_modules'));
  return split(root, entry, known, names);
}

const A = { 'a.js': 'exports.ha = (res) => res.send("a")', 'b.js': 'exports.hb = (res) => res.send("b")' };
const A_WHOLE = { 'a.js': 'module.exports = (res) => res.send("a")', 'b.js': 'module.exports = (res) => res.send("b")' };
const A_ESM = { 'a.mjs': 'export const ha = (res) => res.send("a")', 'b.mjs': 'export const hb = (res) => res.send("b")' };
const APART = [['a.js', 'index.js'], ['b.js', 'index.js']];
const APART_ESM = [['a.mjs', 'index.mjs'], ['b.mjs', 'index.mjs']];
const TOGETHER = ['a.js', 'b.js', 'index.js'];

const TOP = 'const { ha } = require("./a"); const { hb: other } = require("./b");\n';

for (const [what, files, [a, b]] of [
  ['exports.name', { 'index.js': `${TOP} exports.a = (q, s) => ha(s); exports.b = (q, s) => other(s)`, ...A }, APART],
  ['module.exports.name with func and config', { 'index.js': `'use strict';\n${TOP} module.exports.a = { func: async (q, s) => ha(s), config: { timeout: 10_000 } };\nmodule.exports.b = { func: (q, s) => other(s) };`, ...A }, APART],
  ['module.exports = {}', { 'index.js': `${TOP} const a = (q, s) => ha(s); module.exports = { a, b: (q, s) => other(s) }`, ...A }, APART],
  ['methods', { 'index.js': `${TOP} module.exports = { a(q, s) { ha(s) }, async b(q, s) { other(s) } }`, ...A }, APART],
  ['a module that is a function', { 'index.js': 'const ha = require("./a"), hb = require("./b"); exports.a = (q, s) => ha(s); exports.b = (q, s) => hb(s)', ...A_WHOLE }, APART],
  ['require as the value', { 'index.js': 'exports.a = require("./a"); exports.b = { func: require("./b") }', ...A_WHOLE }, APART],
  ['a name of require', { 'index.js': 'exports.a = require("./a").ha; exports.b = require("./b").hb', ...A }, APART],
  ['a whole module by its name', { 'index.js': 'var x = require("./a"); const y = require("./b"); exports.a = () => x.ha(); exports.b = () => y.hb()', ...A }, APART],
  ['require in the function', { 'index.js': 'exports.a = () => require("./a").ha(); exports.b = () => require("./b").hb()', ...A }, APART],
  ['packages', { 'index.js': `const pg = require("pg"); const { readFile } = require("node:fs");\n${TOP} exports.a = () => ha(pg); exports.b = () => other(readFile)`, ...A }, APART],
  ['what a compiler made', { 'index.js': '"use strict";\nObject.defineProperty(exports, "__esModule", { value: true });\nexports.b = exports.a = void 0;\nconst a_1 = require("./a");\nconst b_1 = require("./b");\nconst a = (q, s) => (0, a_1.ha)(s);\nexports.a = a;\nconst b = (q, s) => (0, b_1.hb)(s);\nexports.b = b;', ...A }, APART],
  ['ES modules', { 'index.mjs': 'import { ha } from "./a.mjs"; import * as all from "./b.mjs"; export const a = (q, s) => ha(s); export const b = { func: (q, s) => all.hb(s) }', ...A_ESM }, APART_ESM],
  ['ES modules passed on', { 'index.mjs': 'export { ha as a } from "./a.mjs"; export { hb as b } from "./b.mjs"', ...A_ESM }, APART_ESM],
  ['TypeScript', { 'index.ts': 'import { ha } from "./a.ts"; import { hb } from "./b.ts"; export const a = (q: object, s: any): void => ha(s); export const b = (q: object, s: any) => hb(s)', 'a.ts': 'export const ha = (s: any) => s', 'b.ts': 'export const hb = (s: any) => s' }, [['a.ts', 'index.ts'], ['b.ts', 'index.ts']]],
  ['a folder that passes on', { 'index.js': 'const lib = require("./lib"); exports.a = () => lib.ha(); exports.b = () => lib.hb()', 'lib/index.js': 'module.exports = { ...require("../a"), ...require("../b") }', ...A },
    [['a.js', 'index.js', 'lib/index.js'], ['b.js', 'index.js', 'lib/index.js']]],
  ['a file that both reach', { 'index.js': `${TOP} const log = require("./log"); exports.a = (q, s) => log(ha(s)); exports.b = (q, s) => log(other(s))`, ...A, 'log.js': 'module.exports = (x) => console.log(x)' },
    [['a.js', 'index.js', 'log.js'], ['b.js', 'index.js', 'log.js']]],
]) test(`apart: ${what}`, async (t) => {
  const found = await reached(t, files);
  assert.deepEqual([found.a.files, found.b.files], [a, b]);
});

const BOTH = `${TOP} exports.a = (q, s) => ha(s); exports.b = (q, s) => other(s);`;
for (const [what, files] of [
  ['a side effect while loading', { ...A, 'b.js': 'globalThis.x = 1; exports.hb = () => 1' }],
  ['a client made while loading', { ...A, 'b.js': 'const { Pool } = require("pg"); const pool = new Pool(); exports.hb = () => pool' }],
  ['a package for its effects', { ...A, 'b.js': 'require("newrelic"); exports.hb = () => 1' }],
  ['a mark of purity is not believed', { ...A, 'b.js': 'const x = /* @__PURE__ */ patch(); exports.hb = () => x' }],
  ['sideEffects of package.json are not believed', { ...A, 'b.js': 'globalThis.x = 1; exports.hb = () => 1', 'package.json': '{"sideEffects":false}' }],
  ['eval', { 'index.js': `${BOTH} exports.c = () => eval("other()")`, ...A }],
  ['an export that calls another', { 'index.js': `${BOTH} exports.c = () => exports.b()`, ...A }],
  ['an export that calls another by this', { 'index.js': `${TOP} module.exports = { a() { return ha() + this.b() }, b() { return other() } }`, ...A }],
  ['an export that is a variable', { 'index.js': `${TOP} const all = { a: () => ha() + all.b(), b: () => other() }; module.exports = all`, ...A }],
  ['exports in a loop', { 'index.js': `${TOP} for (const [n, f] of Object.entries({ a: ha, b: other })) exports[n] = f`, ...A }],
  ['a function that is also an object', { 'index.js': `${TOP} module.exports = () => ha(); module.exports.a = ha; module.exports.b = other`, ...A }],
  ['an application', { 'index.js': `${TOP} const app = require("express")(); app.get("/", ha); app.get("/b", other); exports.a = app; exports.b = app`, ...A }],
  ['an object that is filled', { 'index.js': `${TOP} const a = {}; a.func = ha; const b = {}; b.func = other; exports.a = a; exports.b = b`, ...A }],
  ['a name of a block, not strict', { 'index.js': `${TOP} { function help() { return other() } } exports.a = () => ha(help()); exports.b = () => other()`, ...A }],
  ['a shared object that is changed', { 'index.js': `${TOP} const lib = require("./a"); lib.ha = other; exports.a = () => lib.ha(); exports.b = () => other()`, ...A }],
]) test(`together: ${what}`, async (t) => {
  let found;
  try {
    found = await reached(t, { 'index.js': BOTH, ...files });
  } catch (err) {
    assert.ok(err.errors?.length > 0, err); // esbuild refuses it: the caller takes everything
    return;
  }
  assert.deepEqual(found.a.files, TOGETHER);
});

test('a file that only a package loads counts for all', async (t) => {
  const { a } = await reached(t, { 'index.js': BOTH, ...A, 'plugin.js': '' });
  assert.deepEqual(a.files, ['a.js', 'index.js', 'plugin.js']);
});

/** Each change of `b.js` alone: whether it makes `a` anew. */
for (const [what, before, after, anew] of [
  ['another body', 'exports.hb = () => 1', 'exports.hb = () => 2', false],
  ['one more file of its own', 'exports.hb = () => 1', 'exports.hb = require("./c")', false],
  ['a side effect that was not there', 'exports.hb = () => 1', 'exports.hb = () => 1; process.title = "x"', true],
  ['a package that was not loaded', 'exports.hb = () => 1', 'const pg = require("pg"); exports.hb = () => pg', true],
]) test(`of one export: ${what}`, async (t) => {
  const files = { 'index.js': BOTH, ...A };
  const [one, two] = [await reached(t, { ...files, 'b.js': before }), await reached(t, { ...files, 'b.js': after, ...(after.includes('./c') && { 'c.js': 'module.exports = () => 3' }) })];
  assert.equal(JSON.stringify(one.a) !== JSON.stringify(two.a), anew);
  assert.notDeepEqual(one.b.code, two.b.code);
});

test('a name that is passed on to another one is code', async (t) => {
  const files = (lib) => ({ 'index.mjs': 'import { ha, hb } from "./lib.mjs"; export const a = () => ha(); export const b = () => hb()', 'lib.mjs': lib, 'a.mjs': 'export const ha = () => 1; export const hx = () => 2', 'b.mjs': 'export const hb = () => 3' });
  const one = await reached(t, files('export { ha } from "./a.mjs"; export * from "./b.mjs"'));
  const two = await reached(t, files('export { hx as ha } from "./a.mjs"; export * from "./b.mjs"'));
  assert.deepEqual(one.a.files, ['a.mjs', 'index.mjs', 'lib.mjs']);
  assert.notEqual(one.a.code, two.a.code);
  assert.equal(one.b.code, two.b.code);
});

test('the same project gives the same digests wherever it lies', async (t) => {
  const files = { 'index.js': BOTH, ...A };
  assert.deepEqual(await reached(t, files), await reached(t, files));
});
