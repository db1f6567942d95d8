'use strict';
// Failures that Node and Express have: statuses of errors, second answers, rejections. What any language's code can
// do wrong is in ../../contract/test/faults.test.js.

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { until } = require('./support/http.js');
const { ready } = require('./support/process.js');

const ID = { 'x-epsilon-request-id': 'fault-0001' };
const stays = async (f) => {
  await until(async () => (await f.health()).active === 0, 'the end of the call');
  assert.equal((await f.call({ path: '/fine' })).body, 'fine');
};
const start = (t, body, spec) => ready(t, `exports.f = async (req, res) => {
  if (req.path === '/fine') return res.send('fine');
  ${body}
};`, { export: 'f', ...spec });

for (const [what, body, shown] of [
  ['throws with a cause', 'throw new Error("outer", { cause: new Error("inner") });', /outer[^]*cause[^]*inner/],
  ['throws an error whose status is no error\'s', 'throw Object.assign(new Error("odd"), { status: 200, statusCode: "404" });', /odd/],
  ['throws null', 'throw null;', /null/],
  ['throws what cannot be shown', 'throw { get [Symbol.for("nodejs.util.inspect.custom")]() { throw 1 } };', /cannot be shown/],
  ['forgets to await what rejects', '(async () => { await null; throw new Error("forgotten"); })(); await new Promise(() => {});', /forgotten/],
]) {
  test(`a handler that ${what} gets its caller a 500 and stays`, async (t) => {
    const f = await start(t, body);
    const answer = await f.call({ headers: ID });
    assert.equal(answer.status, 500);
    assert.equal(answer.headers['x-epsilon-outcome'], 'threw');
    assert.equal(answer.headers['x-secret'], undefined);
    assert.equal(answer.headers['content-type'], 'application/json');
    assert.deepEqual(JSON.parse(answer.body), { error: {
      type: 'function', code: 'FUNCTION_ERROR', message: '`f` threw an error', hint: '`epsilon logs f` shows why', request_id: 'fault-0001',
    } });
    const record = await f.record((r) => r.level === 'error');
    assert.match(record.message, shown);
    assert.equal(record.request_id, 'fault-0001');
    if (!what.startsWith('forgets')) await stays(f);
  });
}

const withStatus = (more) => `Object.assign(new Error("for you"), ${JSON.stringify(more)})`;
const AS_IT_IS = 'for you';
for (const [what, body, status, message] of [
  ['throws with a status', `throw ${withStatus({ status: 401 })}`, 401, 'Unauthorized'],
  ['throws with a statusCode', `throw ${withStatus({ statusCode: 422, expose: true })}`, 422, AS_IT_IS],
  ['throws after it set headers and a status', `res.status(201).set("x-secret", "1"); throw ${withStatus({ status: 404 })}`, 404, 'Not Found'],
  ['rejects later with a status', `await new Promise((_, reject) => setTimeout(reject, 5, ${withStatus({ status: 404 })}))`, 404, 'Not Found'],
  ['throws with a status of the server', `throw ${withStatus({ status: 503 })}`, 503, 'Service Unavailable'],
  ['throws with a status of the server, for the caller', `throw ${withStatus({ status: 503, expose: true })}`, 503, AS_IT_IS],
  ['throws with a status, not for the caller', `throw ${withStatus({ status: 403, expose: false })}`, 403, 'Forbidden'],
  ['throws what is no error, with a status', 'throw { status: 499 }', 499, '`f` answered with an error'],
  ['calls next with a status of the server', `next(${withStatus({ status: 503 })}); await new Promise(() => {})`, 503, 'Service Unavailable'],
]) {
  test(`a handler that ${what} gets its caller that status, and the log its stack`, async (t) => {
    const f = await ready(t, `exports.f = async (req, res, next) => { ${body}; };`);
    const answer = await f.call({ headers: ID });
    assert.deepEqual([answer.status, answer.headers['content-type'], answer.headers['x-epsilon-outcome'], answer.headers['x-secret']], [status, 'application/json', undefined, undefined]);
    const { error } = JSON.parse(answer.body);
    assert.deepEqual([error.type, error.code, error.message, error.request_id], ['function', 'FUNCTION_ERROR', message, 'fault-0001']);
    const record = await f.record((r) => r.level === 'error');
    assert.match(record.message, what.includes('no error') ? /status: 499/ : /for you\n {4}at .*index\.js/);
    assert.equal(record.request_id, 'fault-0001');
  });
}

test('next() with a `statusCode` of the caller answers with Express\'s page', async (t) => {
  const f = await ready(t, `exports.f = (req, res, next) => next(${withStatus({ statusCode: 404 })});`);
  const answer = await f.call();
  assert.deepEqual([answer.status, answer.headers['content-type']], [404, 'text/html; charset=utf-8']);
});

test('a status is Express\'s: in other signatures an error is a failure', async (t) => {
  for (const source of [
    `exports.f = { fetch() { throw ${withStatus({ status: 404 })}; } }`,
    `exports.f = { func: async () => { throw ${withStatus({ status: 404 })}; }, config: { signature: 'lambda' } }`,
  ]) {
    const f = await ready(t, source);
    const answer = await f.call();
    assert.deepEqual([answer.status, answer.headers['x-epsilon-outcome']], [500, 'threw']);
  }
});

test('a handler that throws at once, without async', async (t) => {
  const f = await ready(t, 'exports.f = () => { throw new Error("sync"); };');
  assert.equal((await f.call()).headers['x-epsilon-outcome'], 'threw');
});

for (const [what, body] of [
  ['in the handler', 'res.send("one"); res.send("two");'],
  ['in a timer', 'res.send("one"); setTimeout(() => res.send("two"), 5);'],
  ['by writing on', 'res.end("one"); res.write("two");'],
  ['in a forgotten promise', 'res.send("one"); Promise.resolve().then(() => res.json(2));'],
]) {
  test(`answering twice ${what} is a warning`, async (t) => {
    const f = await start(t, body);
    const answer = await f.call({ headers: ID });
    assert.deepEqual([answer.status, answer.body], [200, 'one']);
    const record = await f.record((r) => r.level === 'warn');
    assert.match(record.message, /answered twice[^]*index\.js:3/);
    assert.equal(record.request_id, 'fault-0001');
    assert.equal(f.records().filter((r) => r.level === 'error').length, 0);
    await stays(f);
  });
}

test('a rejection outside of calls ends the process', async (t) => {
  const f = await ready(t, 'setTimeout(() => Promise.reject(new Error("lost connection")), 200); exports.f = (req, res) => res.send("x");');
  assert.deepEqual(await f.exit, { code: 1, signal: null });
  assert.match(f.records()[0].message, /lost connection/);
  assert.equal(f.records()[0].request_id, undefined);
});

test('a rejection after the answer is logged and the instance stays', async (t) => {
  const f = await start(t, 'setTimeout(() => Promise.reject(new Error("too late")), 5); res.send("x");');
  assert.equal((await f.call({ headers: ID })).body, 'x');
  assert.equal((await f.record((r) => r.level === 'error')).request_id, 'fault-0001');
  await stays(f);
});
