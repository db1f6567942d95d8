'use strict';
// Log records of Node's console and warnings. What any language's output becomes is in
// ../../contract/test/logs.test.js.

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { until } = require('./support/http.js');
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

test('a stack stays in one record', async (t) => {
  const f = await run(t, `console.error(new Error('one')); console.trace('two')`);
  assert.equal(f.records().length, 2);
  assert.match(f.records()[0].message, /^Error: one\n {4}at /);
  assert.deepEqual([f.records()[1].level, f.records()[1].message.split('\n')[0]], ['debug', 'Trace: two']);
});

test('a very long message and a very large object are bounded', async (t) => {
  const f = await run(t, `console.log('x'.repeat(1e6)); process.stdout.write('y'.repeat(1e6)); console.log(Array(1e6).fill({ deep: { deep: { deep: {} } } }))`);
  const [long, raw, object] = f.records().map((r) => r.message);
  assert.match(long, /^x{65536}… \[934464 characters more\]$/);
  assert.match(raw, /^y{65536}… \[/);
  assert.match(object, /\.\.\. 999900 more items/);
});

test('warnings of Node are records', async (t) => {
  const f = await run(t, 'process.emitWarning("old ways", "DeprecationWarning"); await null');
  assert.deepEqual(said(f), [['warn', 'DeprecationWarning: old ways']]);
});
