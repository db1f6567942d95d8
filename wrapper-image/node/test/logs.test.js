'use strict';
// Log records: one per output, with level and the id of the call that wrote it.

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { head, until } = require('./support/http.js');
const { ready } = require('./support/process.js');

const said = (f) => f.records().map((r) => [r.level, r.message]);
async function run(t, body) {
  const f = await ready(t, `exports.f = async (req, res) => { ${body}; res.end(); };`);
  await f.call({ headers: { 'x-epsilon-request-id': 'log-00001' } });
  await until(async () => (await f.health()).active === 0, 'the end of the call');
  return f;
}

test('levels of console methods', async (t) => {
  const f = await run(t, `console.log('a %s', 1); console.info('b'); console.debug('c'); console.warn('d'); console.error('e');
    console.assert(false, 'f'); console.dir({ g: 1 }); console.group('h'); console.log('i'); console.groupEnd(); console.count('j')`);
  assert.deepEqual(said(f), [
    ['info', 'a 1'], ['info', 'b'], ['debug', 'c'], ['warn', 'd'], ['error', 'e'],
    ['warn', 'Assertion failed: f'], ['info', '{ g: 1 }'], ['info', 'h'], ['info', '  i'], ['info', 'j: 1'],
  ]);
  for (const record of f.records()) {
    assert.equal(record.request_id, 'log-00001');
    assert.equal(new Date(record.time).toISOString(), record.time);
  }
});

test('every line of output is an RFC 7464 record', async (t) => {
  const f = await run(t, `console.log('a\\nb\\x1ec'); console.table([{ x: 1 }])`);
  for (const line of f.out.split('\n').slice(0, -1)) assert.match(line, /^\x1e\{.*\}$/);
  assert.equal(f.records()[0].message, 'a\nb\x1ec');
});

test('a stack stays in one record', async (t) => {
  const f = await run(t, `console.error(new Error('one')); console.trace('two')`);
  assert.equal(f.records().length, 2);
  assert.match(f.records()[0].message, /^Error: one\n {4}at /);
  assert.deepEqual([f.records()[1].level, f.records()[1].message.split('\n')[0]], ['debug', 'Trace: two']);
});

test('raw writes become a record per line, the unfinished one at the end of the call', async (t) => {
  const f = await run(t, `process.stdout.write('a'); process.stdout.write('b\\nc\\n\\nd'); process.stderr.write('e\\n');
    const euro = Buffer.from('€\\n'); process.stdout.write(' '); process.stdout.write(euro.subarray(0, 2)); process.stdout.write(euro.subarray(2));
    await new Promise((resolve) => process.stdout.write('last', resolve))`);
  assert.deepEqual(said(f), [['info', 'ab'], ['info', 'c'], ['info', ''], ['error', 'e'], ['info', 'd €'], ['info', 'last']]);
});

test('a very long message and a very large object are bounded', async (t) => {
  const f = await run(t, `console.log('x'.repeat(1e6)); process.stdout.write('y'.repeat(1e6)); console.log(Array(1e6).fill({ deep: { deep: { deep: {} } } }))`);
  const [long, raw, object] = f.records().map((r) => r.message);
  assert.match(long, /^x{65536}… \[934464 characters more\]$/);
  assert.match(raw, /^y{65536}… \[/);
  assert.match(object, /\.\.\. 999900 more items/);
});

test('lines carry the id of their own call with ten calls at once', async (t) => {
  const f = await ready(t, `
    const { setTimeout: pause } = require('node:timers/promises');
    exports.f = async (req, res) => {
      const n = req.query.n;
      console.log(n + ' start');
      req.on('end', () => console.log(n + ' body end'));
      res.on('finish', () => console.log(n + ' finish'));
      res.on('close', () => console.log(n + ' close'));
      process.stdout.write(n + ' half');
      await pause(Math.random() * 20);
      process.stdout.write(' and half\\n');
      await Promise.all([pause(5), new Promise((resolve) => setImmediate(resolve))]);
      require('node:fs').stat('/', () => { console.warn(n + ' stat'); res.send(n); });
    };`);
  const call = (n) => f.call({ method: 'POST', path: `/?n=${n}`, body: 'x', headers: { 'x-epsilon-request-id': `call-${1000 + n}`, 'content-type': 'multipart/mixed' } });
  await Promise.all(Array.from({ length: 50 }, (_, n) => call(n)));
  await until(async () => (await f.health()).active === 0, 'the end of the calls');
  const records = f.records();
  assert.ok(records.length >= 50 * 5, records.length);
  for (const { message, request_id } of records) assert.equal(request_id, `call-${1000 + Number(message.split(' ')[0])}`, message);
  assert.equal(records.filter((r) => r.message.endsWith(' half and half')).length, 50);
});

test('the same connection serves calls of different ids', async (t) => {
  const http = require('node:http');
  const f = await ready(t, 'exports.f = (req, res) => { req.on("data", () => {}); req.on("end", () => { console.log("end"); res.send("x"); }); };');
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  t.after(() => agent.destroy());
  const sockets = new Set();
  for (const id of ['same-0001', 'same-0002']) {
    await new Promise((resolve) => {
      http.get({ socketPath: f.callsSocket, agent, headers: { 'x-epsilon-request-id': id } }, (res) => res.resume().on('end', resolve))
        .on('socket', (socket) => sockets.add(socket));
    });
  }
  assert.equal(sockets.size, 1);
  assert.deepEqual(f.records().map((r) => r.request_id), ['same-0001', 'same-0002']);
});

test('output while loading belongs to no call', async (t) => {
  const f = await ready(t, 'console.log("loading"); setInterval(() => console.log("tick"), 20).unref(); exports.f = (req, res) => res.end();');
  await f.call();
  await f.record((r) => r.message === 'tick');
  for (const record of f.records()) assert.equal(Object.hasOwn(record, 'request_id'), false);
});

test('warnings of Node are records', async (t) => {
  const f = await run(t, 'process.emitWarning("old ways", "DeprecationWarning"); await null');
  assert.deepEqual(said(f), [['warn', 'DeprecationWarning: old ways']]);
});

test('output of a child process passes as it is', async (t) => {
  const f = await run(t, 'require("node:child_process").execFileSync("echo", ["from a child"], { stdio: "inherit" })');
  assert.equal(f.out, 'from a child\n');
});

test('calls continue without a log reader', async (t) => {
  const f = await ready(t, 'exports.f = (req, res) => { console.log("x"); res.send("fine"); };');
  f.child.stdout.destroy();
  for (let n = 0; n < 5; n += 1) assert.equal((await f.call()).body, 'fine');
  const open = await head(f.callsSocket, {});
  assert.equal(open.statusCode, 200);
});
