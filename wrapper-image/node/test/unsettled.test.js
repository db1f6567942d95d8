'use strict';
// A call ends when its handler has settled: each response that ends before is reported to the agent, and no other.

const assert = require('node:assert/strict');
const http = require('node:http');
const net = require('node:net');
const path = require('node:path');
const { test } = require('node:test');
const { until } = require('./support/http.js');
const { ready, waiting } = require('./support/process.js');

/** Connects as the agent does. @returns the ids reported so far */
async function watch(t, f) {
  const reported = [];
  const socket = net.connect(path.join(f.sockets, 'control.sock'));
  t.after(() => socket.destroy());
  socket.write('GET /unsettled HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: unsettled\r\n\r\n');
  let text = '';
  socket.on('data', (bytes) => {
    text += bytes;
    const [head, lines = ''] = text.split('\r\n\r\n');
    reported.head = head;
    reported.splice(0, Infinity, ...lines.split('\n').slice(0, -1));
  });
  await until(() => reported.head, 'the answer to the handshake');
  assert.match(reported.head, /^HTTP\/1\.1 101 /);
  return reported;
}

/** Calls with an id; returns the ids that were reported when the last byte arrived. */
async function reportedBy(f, reported, id, options = {}) {
  const answer = await f.call({ ...options, headers: { 'x-epsilon-request-id': id, ...options.headers } });
  await new Promise(setImmediate); // both sockets have something to read; either may be read first
  return { answer, reported: [...reported] };
}

const over = (f) => until(async () => (await f.health()).active === 0, 'the end of the call');
const TICK = 'await new Promise((resolve) => setTimeout(resolve, 5));';
const GATE = 'await gate;';

/** Behaviours of a handler; each responds `done`, and those without `gate` settle with the response. */
const EXPRESS = {
  'a handler that is not async': ['(req, res) => { res.send("done"); }', false],
  'an async handler': ['async (req, res) => { res.send("done"); }', false],
  'an async handler after a wait': [`async (req, res) => { ${TICK} res.send("done"); }`, false],
  'promises after the answer that wait for nothing': ['async (req, res) => { res.send("done"); for (let i = 0; i < 50; i += 1) await null; }', false],
  'ticks within promises after the answer': ['async (req, res) => { await null; res.send("done"); await null; }', false],
  'an answer out of a callback': ['(req, res) => new Promise((resolve) => setTimeout(() => { res.send("done"); resolve(); }, 5))', false],
  'an answer out of a callback, without a promise': ['(req, res) => { setTimeout(() => res.send("done"), 5); }', false],
  'a body that was read': ['async (req, res) => { res.send(req.body.a); }', false, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"a":"done"}' }],
  'an error after the answer': ['async (req, res) => { res.send("done"); throw new Error("late"); }', false],
  'work after the answer': [`async (req, res) => { res.send("done"); ${GATE} }`, true],
  'work after an answer without body': [`async (req, res) => { res.status(204).end(); ${GATE} }`, true],
  'work after a redirect': [`async (req, res) => { res.redirect("/x"); ${GATE} }`, true],
  'work after an answer in parts': [`async (req, res) => { res.write("do"); ${TICK} res.end("ne"); ${GATE} }`, true],
  'a head without body that is flushed before the end': ['async (req, res) => { res.flushHeaders(); await gate; res.end(); }', true, { method: 'HEAD' }],
  'work after a large answer': [`async (req, res) => { res.end(Buffer.alloc(3_000_000, "x")); ${GATE} }`, true],
  'work after an answer to HEAD': [`async (req, res) => { res.send("done"); ${GATE} }`, true, { method: 'HEAD' }],
  'work after an answer that is not new': [`async (req, res) => { res.set("etag", '"x"'); res.send("done"); ${GATE} }`, true, { headers: { 'if-none-match': '"x"' } }],
  'work after a file': [`async (req, res) => { res.sendFile(__filename); ${GATE} }`, true],
  'work beside an application inside': [`async (req, res) => { Object.setPrototypeOf(res, require('http').ServerResponse.prototype); res.end("done"); ${GATE} }`, true],
};

for (const [what, [source, isPending, options]] of Object.entries(EXPRESS)) {
  test(`${what}: the call is ${isPending ? '' : 'not '}reported`, async (t) => {
    const f = await ready(t, `
      let open; const gate = new Promise((resolve) => (open = resolve));
      const handler = ${source};
      exports.f = (req, res) => { if (req.path !== '/open') return handler(req, res); open(); res.send(''); };`);
    const reported = await watch(t, f);
    const { reported: before } = await reportedBy(f, reported, 'unsettled-1', options);
    assert.deepEqual(before, isPending ? ['unsettled-1'] : []);
    const { active, calls } = await f.health();
    assert.deepEqual([active, calls], isPending ? [1, ['unsettled-1']] : [0, []]);
    await f.call({ path: '/open' });
    await over(f);
    assert.deepEqual(reported.filter((id) => id !== 'unsettled-1'), []);
  });
}

for (const [what, source, isPending] of [
  ['ctx.waitUntil', 'exports.f = { fetch: (request, env, ctx) => { ctx.waitUntil(gate); return answer(request); } };', true],
  ['ctx.waitUntil of what is settled', 'exports.f = { fetch: (request, env, ctx) => { ctx.waitUntil(Promise.resolve()); return answer(request); } };', false],
  ['fetch', 'exports.f = { fetch: async (request) => answer(request) };', false],
  ['fetch that streams', 'exports.f = { fetch: async () => new Response(new ReadableStream({ async start(c) { c.enqueue(Buffer.from("a")); await new Promise((r) => setTimeout(r, 20)); c.close(); } })) };', false],
  ['a lambda handler', 'exports.f = { func: async () => ({ statusCode: 200, body: "done" }), config: { signature: "lambda" } };', false],
  ['a lambda callback', 'exports.f = { func: (e, c, callback) => { setTimeout(callback, 5, null, "done"); }, config: { signature: "lambda" } };', false],
  ['a lambda handler that goes on behind its callback', 'exports.f = { func: async (e, c, callback) => { callback(null, "done"); await gate; }, config: { signature: "lambda" } };', true],
  ['an Express application', 'const app = require(process.env.EXPRESS)(); app.get("/", async (req, res) => { res.send("done"); await gate; }); exports.f = app;', false],
  ['Koa\'s kind of listener', 'exports.f = (req, res) => Promise.resolve().then(() => { res.end("done"); });', false],
]) {
  test(`${what}: the call is ${isPending ? '' : 'not '}reported`, async (t) => {
    const f = await ready(t, `
      let open; const gate = new Promise((resolve) => (open = resolve));
      const answer = (request) => { if (new URL(request.url).pathname === '/open') open(); return new Response('done'); };
      ${source}`, { export: 'f', env: { EXPRESS: require.resolve('express') } });
    const reported = await watch(t, f);
    const { reported: before } = await reportedBy(f, reported, 'unsettled-2');
    assert.deepEqual(before, isPending ? ['unsettled-2'] : []);
    assert.equal((await f.health()).active, isPending ? 1 : 0);
  });
}

test('an upgraded connection that ends before its handler is reported', async (t) => {
  const f = await ready(t, `
    let open; const gate = new Promise((resolve) => (open = resolve));
    exports.f = {
      func: (req, res) => { open(); res.send(''); },
      upgrade: async (req, socket) => {
        socket.end('HTTP/1.1 101 Switching Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: x\\r\\n\\r\\n');
        if (req.url === '/goes-on') await gate;
      },
    };`);
  const reported = await watch(t, f);
  const upgrade = (path, id) => new Promise((resolve, reject) => {
    http.get({ socketPath: f.callsSocket, path, headers: { connection: 'Upgrade', upgrade: 'x', 'x-epsilon-request-id': id } })
      .on('upgrade', (res, socket) => socket.resume().on('end', () => resolve(socket.end())))
      .on('error', reject);
  });
  await upgrade('/settles', 'upgrade-01');
  await over(f);
  await upgrade('/goes-on', 'upgrade-02');
  await until(() => reported.length > 0, 'the line');
  assert.equal(reported.at(-1), 'upgrade-02');
  assert.equal((await f.health()).active, 1);
  await f.call();
  await over(f);
});

test('a complete response without end is reported', async (t) => {
  const f = await ready(t, `exports.f = (req, res) => {
    res.set('content-length', '4');
    res.write('done');
    setTimeout(() => res.end(), 50);
  };`);
  const reported = await watch(t, f);
  assert.deepEqual((await reportedBy(f, reported, 'no-end-yet')).reported, ['no-end-yet']);
  await over(f);
});

test('with many calls only continuing ones are reported', async (t) => {
  const f = await ready(t, `exports.f = async (req, res) => {
    await new Promise((resolve) => setTimeout(resolve, req.query.n % 7));
    res.send('done');
    if (req.query.n % 3 === 0) await new Promise((resolve) => setTimeout(resolve, 30));
  };`);
  const reported = await watch(t, f);
  await Promise.all(Array.from({ length: 60 }, async (_, n) => {
    const { reported: before } = await reportedBy(f, reported, `at-once-${n}`, { path: `/?n=${n}` });
    assert.equal(before.includes(`at-once-${n}`), n % 3 === 0, n);
  }));
  await over(f);
  assert.equal(reported.length, 20);
});

test('a finished response is sent although the code exits', async (t) => {
  const f = await ready(t, 'exports.f = async (req, res) => { res.send("last words"); process.exit(0); };');
  await watch(t, f);
  assert.equal((await f.call()).body, 'last words');
  assert.deepEqual(await f.exit, { code: 0, signal: null });
});

test('a later connection takes over', async (t) => {
  const f = await ready(t, 'exports.f = async (req, res) => { res.send("x"); await new Promise((resolve) => setTimeout(resolve, 5)); };');
  const first = await watch(t, f);
  const second = await watch(t, f);
  assert.deepEqual((await reportedBy(f, second, 'takes-over')).reported, ['takes-over']);
  assert.deepEqual([...first], []);
});

test('unsettled works before init; other upgrades are unknown', async (t) => {
  const f = await waiting(t, { 'index.js': 'exports.f = async (req, res) => { res.send("x"); await new Promise((resolve) => setTimeout(resolve, 5)); };' });
  const reported = await watch(t, f);
  await f.init({ export: 'f' });
  assert.deepEqual((await reportedBy(f, reported, 'watched-1')).reported, ['watched-1']);
  for (const [path, upgrade] of [['/unsettled', 'websocket'], ['/health', 'unsettled']]) {
    const answer = await f.control({ path, headers: { connection: 'Upgrade', upgrade } }).catch((err) => err);
    assert.ok(answer instanceof Error || answer.status === 404); // an answer without JSON
  }
  assert.equal((await f.control({ path: '/unsettled' })).status, 404);
});
