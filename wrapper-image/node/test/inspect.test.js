'use strict';
// The report to the builder about a project: exports, errors, and the files that each entry reaches.

const assert = require('node:assert/strict');
const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const { folder, project } = require('./support/process.js');

function inspect(t, files, ...entries) {
  return inspectWith(t, {}, files, ...entries);
}

function inspectWith(t, more, files, ...entries) {
  const root = project(t, files);
  const out = path.join(folder(t), 'out.json');
  const env = { PATH: process.env.PATH, EPSILON_INSPECT_OUT: out, EPSILON_INSPECT_TIMEOUT_MS: '5000', ...more };
  execFileSync(process.execPath, [path.join(__dirname, '../inspect.js'), ...entries], { cwd: root, env, stdio: 'pipe' });
  return JSON.parse(fs.readFileSync(out)).entries;
}

test('every kind of export, with signature and config', (t) => {
  const [entry] = inspect(t, { 'index.js': `
    exports.a = { func: (req, res) => {}, config: { timeout: 10_000, env: { A: 'b' } }, upgrade() {} };
    exports.b = { definition: async () => {} };
    exports.c = (req, res) => {};
    exports.handler = async (event, context) => {};
    exports.web = { fetch() {} };
    exports.lambda = { func: async () => {}, config: { signature: 'lambda' } };
    exports.notAFunction = 1; exports.nothing = null; exports.Class = class {}; exports.options = { config: {} };
  ` }, 'index.js');
  assert.deepEqual(entry, {
    entry: 'index.js', error: null, files: ['index.js'], dynamic: [],
    exports: [
      { name: 'a', signature: 'express', config: { timeout: 10_000, env: { A: 'b' } } },
      { name: 'b', signature: 'express', config: null },
      { name: 'c', signature: 'express', config: null },
      { name: 'handler', signature: 'lambda', config: null },
      { name: 'web', signature: 'fetch', config: null },
      { name: 'lambda', signature: 'lambda', config: { signature: 'lambda' } },
    ],
  });
});

test('helpers are reported with their parameters, handlers are not', (t) => {
  const [entry] = inspect(t, { 'index.js': `
    exports.add = (a, b = 2) => a + b; exports.close = async () => {}; exports.one = rows => rows; exports.method = { named(id) {} }.named;
    exports.express = (req, res) => res.send('x'); exports.short = (q, s) => s.send('x'); exports.unused = (_, r) => {};
    exports.lambda = async (event) => 1; exports.taken = async ({ body }) => 1; exports.web = () => new Response('x');
    exports.wrapped = (...args) => exports.express(...args); exports.old = function () { return exports.express.apply(this, arguments); };
    exports.bound = exports.add.bind(null); exports.own = { func: (a, b) => {} }; exports.handler = (a) => {};
  ` }, 'index.js');
  const helpers = entry.exports.filter(({ helper }) => helper !== undefined).map(({ name, helper }) => name + helper);
  assert.deepEqual(helpers, ['add(a, b = 2)', 'close()', 'one(rows)', 'method(id)']);
});

/** Like itty-router's: the methods come from a Proxy, from which the object inherits. */
const ROUTER = '{ __proto__: new Proxy({}, { get: (target, name, router) => (route, ...handlers) => router.routes.push([name, handlers]) && router }), routes: [], fetch() { return new Response(String(this.routes.length)); } }';

for (const [what, files, expected] of [
  ['a function', { 'e.js': 'module.exports = () => {}; module.exports.inner = () => {}' }, [['default', 'express']]],
  ['one { func, config }', { 'e.js': 'module.exports = { func() {}, config: {} }' }, [['default', 'express']]],
  ['an Express application', { 'e.js': 'const app = () => {}; app.handle = app.set = app.get = () => {}; module.exports = app' }, [['default', 'express']]],
  ['a router that answers every name', { 'e.js': `module.exports = ${ROUTER}` }, [['default', 'fetch']]],
  ['an ES module of such a router', { 'e.mjs': `export default ${ROUTER}` }, [['default', 'fetch']]],
  ['one { func } that answers every name', { 'e.mjs': 'export default { __proto__: new Proxy({}, { get: () => () => {} }), func() {} }' }, [['default', 'express']]],
  ['a function that answers every name', { 'e.js': 'module.exports = new Proxy(() => {}, { get: (target, name) => target[name] ?? (() => {}) })' }, [['default', 'express']]],
  ['an application of a class, such as Hono\'s', { 'e.js': 'class App { get = () => {}; post = () => {}; fetch = () => {} } module.exports = new App()' }, [['default', 'fetch']]],
  ['an ES module', { 'e.js': 'export default { fetch() {} }; export const a = () => {}' }, [['a', 'express'], ['default', 'fetch']]],
]) {
  test(`a module that is ${what}`, (t) => {
    const [{ exports, error }] = inspect(t, files, ...Object.keys(files));
    assert.equal(error, null);
    assert.deepEqual(exports.map((e) => [e.name, e.signature]).sort(), expected);
  });
}

test('an error\'s own properties keep both of their brackets', (t) => {
  const [{ error }] = inspect(t, { 'e.js': 'require("no-such-module")' }, 'e.js');
  assert.match(error.stack, / \{\n/);
  assert.equal(error.stack.split('{').length, error.stack.split('}').length, error.stack);
});

test('other data on the result pipe is reported', (t) => {
  const [{ error }] = inspect(t, { 'e.js': 'require("fs").writeSync(3, "garbage"); exports.a = () => {}' }, 'e.js');
  assert.match(error.message, /wrote to file descriptor 3/);
});

test('a failing entry does not affect others', (t) => {
  const entries = inspect(t, {
    'throws.js': 'throw new Error("boom")',
    'syntax.js': 'foo bar',
    'exits.js': 'process.exit(3)',
    'hangs.js': 'for (;;);',
    'waits.mjs': 'await new Promise(() => {})',
    'kills.js': 'process.kill(process.pid, "SIGKILL")',
    'emits.js': 'setImmediate(() => { throw new Error("of its own") }); exports.a = () => {}',
    'later.js': 'setTimeout(() => { throw new Error("later") }, 50); setInterval(() => {}, 1000); exports.fine = () => {}',
    'fine.js': 'exports.fine = () => {}',
  }, 'throws.js', 'syntax.js', 'exits.js', 'hangs.js', 'waits.mjs', 'kills.js', 'emits.js', 'none.js', 'later.js', 'fine.js');
  const errors = Object.fromEntries(entries.map((e) => [e.entry, e.error?.message ?? null]));
  assert.deepEqual(errors, {
    'throws.js': 'boom',
    'syntax.js': "Unexpected identifier 'bar'",
    'exits.js': '`exits.js` exited with code 3 while loading',
    'hangs.js': '`hangs.js` did not finish loading within 5000 ms',
    'waits.mjs': '`waits.mjs` ended before it was loaded: `process.exit()`, or an `await` that never settles',
    'kills.js': '`kills.js` was ended by SIGKILL while loading; most likely it ran out of memory',
    'emits.js': 'of its own',
    'none.js': '`none.js` does not exist',
    'later.js': null,
    'fine.js': null,
  });
  assert.match(entries[1].error.stack, /syntax\.js:1\nfoo bar/);
  assert.match(entries[0].error.stack, /^Error: boom\n {4}at .*throws\.js:1:7\)$/);
});

/** Always happens before the inspection ends; in real code that depends on turns of the event loop. */
for (const [what, code] of [
  ['an unawaited rejection', 'Promise.reject(new Error("stray"));'],
  ['a rejection within the load\'s last turn', 'setImmediate(() => Promise.reject(new Error("stray")));'],
  ['a client that connects', 'const net = require("net"); new Promise((_, reject) => net.connect("/no.sock").on("error", reject));'],
  ['a connection without a listener for its errors', 'require("net").connect("/no.sock");'],
  ['a connection to several addresses', 'process.nextTick(() => { throw new AggregateError([Object.assign(new Error(""), { syscall: "connect" })]); });'],
]) {
  test(`${what} is no failure to load`, (t) => {
    const [{ error, exports }] = inspect(t, { 'e.js': `${code} exports.a = () => {}` }, 'e.js');
    assert.equal(error, null);
    assert.deepEqual(exports.map(({ name }) => name), ['a']);
  });
}

test('a rejection that is awaited at the top level is a failure to load', (t) => {
  const [{ error }] = inspect(t, { 'e.mjs': 'import net from "node:net"; await new Promise((_, reject) => net.connect("/no.sock").on("error", reject)); export const a = () => {}' }, 'e.mjs');
  assert.match(error.message, /connect ENOENT/);
});

test('the event version is a setting of Lambda functions', (t) => {
  const [{ exports }] = inspect(t, { 'index.js': "exports.a = { func() {}, config: { event: 'v1', timeout: '1s' } }" }, 'index.js');
  assert.deepEqual(exports, [{ name: 'a', signature: 'lambda', config: { event: 'v1', timeout: '1s' } }]);
});

/** As firebase-functions 7 makes it: an option that was not set is a placeholder object for the default. */
const firebase = (endpoint) => {
  const unset = '{ toJSON: () => null }';
  const own = Object.entries(endpoint).map(([key, value]) => `${key}: ${value}`).join();
  return `Object.assign((req, res) => {}, { __endpoint: { platform: 'gcfv2', availableMemoryMb: ${unset}, timeoutSeconds: ${unset}, concurrency: ${unset}, vpc: ${unset}, labels: {}, ${own} } })`;
};

const UNREADABLE = 'Object.defineProperty(() => {}, "__endpoint", { get() { throw new Error("no project"); } })';

test('`config` takes precedence over options of firebase-functions', (t) => {
  const set = firebase({ httpsTrigger: '{}', availableMemoryMb: 512, timeoutSeconds: 30, cpu: 2, concurrency: 8, minInstances: 1, maxInstances: 3 });
  const [{ exports, error }] = inspect(t, { 'e.js': `
    exports.set = ${set};
    exports.unset = ${firebase({ httpsTrigger: '{ invoker: ["public"] }' })};
    exports.callable = ${firebase({ callableTrigger: '{}', cpu: '"gcf_gen1"' })};
    exports.both = { func: ${set}, config: { memory: '1GiB' } };
  ` }, 'e.js');
  assert.equal(error, null);
  const settings = { memory: '512MiB', timeout: '30s', cpu: 2, concurrency: 8, minInstances: 1, maxInstances: 3 };
  assert.deepEqual(exports, [
    { name: 'set', signature: 'express', config: settings },
    { name: 'unset', signature: 'express', config: null },
    { name: 'callable', signature: 'express', config: null },
    { name: 'both', signature: 'express', config: { ...settings, memory: '1GiB' } },
  ]);
});

for (const [what, endpoint, message] of [
  ['a schedule', { scheduleTrigger: '{ schedule: "every day 03:00" }' }, /`night` is a scheduled function of firebase-functions \(`every day 03:00`\); only HTTP functions are served: .*onRequest/],
  ['an event', { eventTrigger: '{ eventType: "google.cloud.storage.object.v1.finalized" }' }, /`night` is a function for events of firebase-functions \(`google\.cloud\.storage/],
  ['a task queue', { taskQueueTrigger: '{}' }, /`night` is a function for task queues/],
  ['a question of Identity Platform', { blockingTrigger: '{ eventType: "beforeCreate" }' }, /`night` is a blocking function/],
  ['a trigger that cannot be read', null, /`night` of firebase-functions does not say what starts it \(no project\)/],
  ['callers of its own', { httpsTrigger: '{ invoker: ["private"] }' }, /`night` has `invoker: private` of firebase-functions, but every function is public/],
  ['an address of its own network', { httpsTrigger: '{}', ingressSettings: '"ALLOW_INTERNAL_ONLY"' }, /`night` has `ingressSettings: ALLOW_INTERNAL_ONLY` of firebase-functions, but every/],
  ['a parameter', { httpsTrigger: '{}', timeoutSeconds: '{ toCEL() {} }' }, /`timeout` of `night` is a parameter of firebase-functions/],
]) {
  test(`a function of firebase-functions with ${what} is refused by name`, (t) => {
    const [{ error }] = inspect(t, { 'e.js': `exports.fine = () => {}; exports.night = ${endpoint ? firebase(endpoint) : UNREADABLE}` }, 'e.js');
    assert.match(error.message, message);
  });
}

test('config that is not plain data is an error', (t) => {
  const [entry] = inspect(t, { 'e.js': 'exports.a = { func() {}, config: { timeout: () => 1 } }' }, 'e.js');
  assert.match(entry.error.message, /`config` of `a` holds something at `timeout`/);
});

test('files: loaded and literal imports, without node_modules', (t) => {
  const [one, two] = inspect(t, {
    'one.js': 'require("./lib/shared"); exports.a = () => { require("./lib/lazy"); return import("./esm.mjs"); }; require("dep"); require("./data.json")',
    'two.js': 'require("./lib/shared"); exports.b = () => {}',
    'lib/shared.js': 'require("./deeper")',
    'lib/deeper/index.js': '',
    'lib/lazy.js': 'require("./lazier.js")',
    'lib/lazier.js': '',
    'esm.mjs': "import './side.mjs'; export * from './re-exported.mjs'; import { x } from '#alias';",
    'side.mjs': '', 're-exported.mjs': '', 'aliased.mjs': 'export const x = 1', 'data.json': '{}', 'unused.js': '',
    'package.json': '{"imports":{"#alias":"./aliased.mjs"}}',
    'node_modules/dep/index.js': 'require("./own")', 'node_modules/dep/own.js': '',
  }, 'one.js', 'two.js');
  assert.deepEqual(one.files, [
    'aliased.mjs', 'data.json', 'esm.mjs', 'lib/deeper/index.js', 'lib/lazier.js', 'lib/lazy.js', 'lib/shared.js', 'one.js', 're-exported.mjs', 'side.mjs',
  ]);
  assert.deepEqual(two.files, ['lib/deeper/index.js', 'lib/shared.js', 'two.js']);
  assert.deepEqual([...one.dynamic, ...two.dynamic], []);
});

test('dynamic: unresolvable imports are reported', (t) => {
  const [{ dynamic }] = inspect(t, { 'e.js': [
    'const name = "x";',
    'exports.a = () => require(name);',
    'exports.b = () => import(`./${name}.js`);',
    'exports.c = () => require("./" + name);',
    'const r = require;',
    'exports.d = () => new Worker("./w.js");',
    'exports.e = () => eval(name);',
    'if (require.main === module) {}',
    'require("node:fs"); require.resolve("node:fs");',
  ].join('\n') }, 'e.js');
  assert.deepEqual(dynamic.map((d) => [d.file, d.line]), [['e.js', 2], ['e.js', 3], ['e.js', 4], ['e.js', 5], ['e.js', 6], ['e.js', 7]]);
  assert.equal(dynamic[0].text, 'require(name);');
});

test('user code cannot write the report by printing', (t) => {
  const [entry] = inspect(t, { 'e.js': 'console.log("{}"); exports.a = () => {}' }, 'e.js');
  assert.equal(entry.exports.length, 1);
});

for (const [what, code, graph, expected] of [
  ['what each export reaches is added', 'exports.a = () => {}; exports.b = () => {}', 'async (root, entry, files, names) => Object.fromEntries(names.map((name) => [name, { files, code: entry }]))',
    { reach: [{ files: ['e.js'], code: 'e.js' }, { files: ['e.js'], code: 'e.js' }] }],
  ['one export is not asked about', 'exports.a = () => {}', '() => { throw new Error("asked") }', { reach: [undefined] }],
  ['nor what only a run can tell', 'exports.a = (n) => require(n); exports.b = () => {}', '() => { throw new Error("asked") }', { reach: [undefined, undefined] }],
  ['a failure is reported, and all counts', 'exports.a = () => {}; exports.b = () => {}', 'async () => { throw new Error("no graph") }', { reach: [undefined, undefined], together: 'no graph' }],
  ['an answer that never comes is no answer', 'exports.a = () => {}; exports.b = () => {}', '() => { setInterval(() => {}, 1000); return new Promise(() => {}) }', { reach: [undefined, undefined], together: 'no answer within 5000 ms' }],
]) {
  test(`the module graph: ${what}`, (t) => {
    const file = path.join(folder(t), 'graph.js');
    fs.writeFileSync(file, `exports.split = ${graph}`);
    const [{ exports, together, error }] = inspectWith(t, { EPSILON_INSPECT_GRAPH: file }, { 'e.js': code }, 'e.js');
    assert.equal(error, null);
    assert.deepEqual({ reach: exports.map((one) => one.reach), ...(together && { together }) }, expected);
  });
}
