'use strict';
// Lambda's response streaming: `awslambda.streamifyResponse` and `HttpResponseStream.from`.

const assert = require('node:assert/strict');
const { Readable } = require('node:stream');
const { pipeline } = require('node:stream/promises');
const { test } = require('node:test');
const { head, until } = require('./support/http.js');
const { ready } = require('./support/process.js');
const { serve } = require('./support/serve.js');
const { functionsOf, signatureOf } = require('../lib/exports.js');
require('../lib/signature/lambda/stream.js').provideGlobal();

const { awslambda } = globalThis;
const METADATA = { statusCode: 201, headers: { 'Content-Type': 'text/plain', 'x-a': 1, 'content-length': '3' }, cookies: ['a=1', 'b=2'] };
const streaming = (t, handler) => serve(t, awslambda.streamifyResponse(handler));
const over = (f) => until(() => f.instance.active === 0, 'the end of the call');

test('the global exists during loading; any export name works', async (t) => {
  const f = await ready(t, `exports.f = awslambda.streamifyResponse(async (event, out, context) => {
    out = awslambda.HttpResponseStream.from(out, { statusCode: 202, headers: { 'content-type': 'text/plain' } });
    out.write(event.rawPath);
    out.write(Buffer.from(' ' + typeof context.getRemainingTimeInMillis()));
    out.end();
  });`);
  const answer = await f.call({ path: '/a' });
  assert.deepEqual([answer.status, answer.headers['content-type'], answer.body], [202, 'text/plain', '/a number']);
  const handler = awslambda.streamifyResponse(async () => {});
  assert.equal(signatureOf('any', functionsOf({ any: handler }).get('any')), 'lambda');
});

test('metadata sets status, headers and cookies', async (t) => {
  const f = await streaming(t, async (event, out) => awslambda.HttpResponseStream.from(out, METADATA).end('body'));
  const { status, headers, body } = await f.call();
  assert.deepEqual([status, headers['content-type'], headers['x-a'], headers['set-cookie'], body], [201, 'text/plain', '1', ['a=1', 'b=2'], 'body']);
  await over(f);
});

test('without metadata the response is 200 with the content type', async (t) => {
  const typed = await streaming(t, async (event, out) => {
    out.setContentType('text/css');
    out.end('a');
  });
  const plain = await streaming(t, async (event, out) => out.end());
  assert.deepEqual([(await typed.call()).headers['content-type'], (await plain.call()).headers['content-type']], ['text/css', 'application/octet-stream']);
});

test('parts are sent at once; the event has the body', async (t) => {
  const f = await streaming(t, async (event, out) => {
    out.write(event.body);
    await new Promise((resolve) => (f.go = resolve));
    out.end('two');
  });
  const answer = await head(f.socket, { method: 'POST', body: 'one ', headers: { 'content-type': 'text/plain' } });
  const parts = [];
  answer.on('data', (part) => parts.push(String(part)));
  await until(() => parts.length === 1, 'the first part');
  f.go();
  await until(() => parts.length === 2, 'the second');
  assert.deepEqual(parts, ['one ', 'two']);
  await over(f);
});

test('a handler that is not async, and one that pipes', async (t) => {
  const callback = await streaming(t, (event, out) => { setTimeout(() => out.end('later'), 5); });
  assert.equal((await callback.call()).body, 'later');
  const pipe = await streaming(t, (event, out) => pipeline(Readable.from(['a', 'b']), out));
  assert.equal((await pipe.call()).body, 'ab');
  for (const f of [callback, pipe]) await over(f);
});

test('a slow reader slows the handler; disconnecting ends the stream', async (t) => {
  let pulled = 0;
  const source = function* () { for (;;) yield Buffer.alloc(64 * 1024, pulled += 1); };
  const f = await streaming(t, (event, out) => pipeline(Readable.from(source()), out));
  const answer = await head(f.socket, {}); // and never read
  let before;
  await until(() => before === (before = pulled) && pulled > 1, 'the stream to stand still');
  assert.ok(pulled < 500, `${pulled} chunks of 64 KiB without a reader`);
  answer.destroy();
  await over(f);
  assert.deepEqual(f.logged, [], 'nothing is wrong with the function');
});

for (const [what, fail] of [
  ['throws', async () => { throw new Error('broken'); }],
  ['breaks its stream', (event, out) => pipeline(Readable.from((async function* () { throw new Error('broken'); })()), out)],
  ['states no number as its status', async (event, out) => awslambda.HttpResponseStream.from(out, { statusCode: 'broken' })],
]) {
  test(`a handler that ${what} before it writes is a failure`, async (t) => {
    const f = await streaming(t, fail);
    const answer = await f.call();
    assert.deepEqual([answer.status, answer.headers['x-epsilon-outcome']], [500, 'threw']);
    assert.equal(f.logged.length, 1);
    assert.match(f.logged[0].message, /broken/);
    await over(f);
  });
}

for (const [what, fail] of [
  ['throws', async (event, out) => {
    out.write('half');
    await new Promise((resolve) => setTimeout(resolve, 5));
    throw new Error('broken');
  }],
  ['breaks its stream', (event, out) => pipeline(Readable.from((async function* () {
    yield 'half';
    throw new Error('broken');
  })()), out)],
]) {
  test(`a handler that ${what} after it has written is cut`, async (t) => {
    const f = await streaming(t, fail);
    await assert.rejects(f.call(), { code: 'ECONNRESET' });
    await over(f);
    assert.equal(f.logged.length, 1);
    assert.match(f.logged[0].message, /broken/);
  });
}
