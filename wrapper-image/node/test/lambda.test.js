'use strict';
// The contract of AWS Lambda: events of version 2, results, contexts, callbacks.

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { head, until } = require('./support/http.js');
const { serve } = require('./support/serve.js');

const lambda = (t, func, options) => serve(t, func, { signature: 'lambda', ...options });

test('the event carries the request', async (t) => {
  const f = await lambda(t, async (event) => event);
  const answer = await f.call({
    method: 'PUT', path: '/a%20b/c?x=1&x=2&y=%C3%A9&z', body: '{"a":1}',
    headers: {
      host: 'f.example.com', cookie: 'a=1; b=2', 'content-type': 'application/json', 'user-agent': 'test/1',
      'x-forwarded-for': '203.0.113.7', 'x-epsilon-request-id': 'lambda-0001', 'x-twice': ['1', '2'],
    },
  });
  assert.equal(answer.headers['content-type'], 'application/json');
  const event = JSON.parse(answer.body);
  const { time, timeEpoch, ...context } = event.requestContext;
  assert.match(time, /^\d\d\/[A-Z][a-z]{2}\/\d{4}:\d\d:\d\d:\d\d \+0000$/);
  assert.ok(Math.abs(timeEpoch - Date.now()) < 60_000);
  assert.deepEqual(context, {
    accountId: 'anonymous', apiId: 'epsilon', domainName: 'f.example.com', domainPrefix: 'f', requestId: 'lambda-0001',
    routeKey: '$default', stage: '$default',
    http: { method: 'PUT', path: '/a%20b/c', protocol: 'HTTP/1.1', sourceIp: '203.0.113.7', userAgent: 'test/1' },
  });
  assert.equal(event.version, '2.0');
  assert.equal(event.rawPath, '/a%20b/c');
  assert.equal(event.rawQueryString, 'x=1&x=2&y=%C3%A9&z');
  assert.deepEqual(event.queryStringParameters, { x: '1,2', y: 'é', z: '' });
  assert.deepEqual(event.cookies, ['a=1', 'b=2']);
  assert.equal(event.headers.cookie, undefined);
  assert.equal(event.headers['x-twice'], '1, 2');
  assert.deepEqual([event.body, event.isBase64Encoded], ['{"a":1}', false]);
});

test('an event of version 1 carries the request', async (t) => {
  const f = await serve(t, async (event) => event, { signature: 'lambda', event: 'v1' });
  const answer = await f.call({
    method: 'PUT', path: '/a%20b/c?x=1&x=2&y=%C3%A9&z', body: '{"a":1}',
    headers: {
      host: 'f.example.com', cookie: 'a=1; b=2', 'content-type': 'application/json', 'user-agent': 'test/1',
      'x-forwarded-for': '203.0.113.7', 'x-epsilon-request-id': 'lambda-0001', 'x-twice': ['1', '2'],
    },
  });
  const event = JSON.parse(answer.body);
  const { requestTime, requestTimeEpoch, ...context } = event.requestContext;
  assert.match(requestTime, /^\d\d\/[A-Z][a-z]{2}\/\d{4}:\d\d:\d\d:\d\d \+0000$/);
  assert.ok(Math.abs(requestTimeEpoch - Date.now()) < 60_000);
  assert.deepEqual(context, {
    accountId: 'anonymous', apiId: 'epsilon', domainName: 'f.example.com', domainPrefix: 'f', httpMethod: 'PUT', path: '/a%20b/c',
    extendedRequestId: 'lambda-0001', requestId: 'lambda-0001', protocol: 'HTTP/1.1', resourceId: '$default', resourcePath: '/{proxy+}',
    stage: '$default', identity: { sourceIp: '203.0.113.7', userAgent: 'test/1' },
  });
  assert.deepEqual([event.httpMethod, event.resource, event.path, event.pathParameters], ['PUT', '/{proxy+}', '/a%20b/c', { proxy: 'a%20b/c' }]);
  assert.deepEqual(event.queryStringParameters, { x: '2', y: 'é', z: '' });
  assert.deepEqual(event.multiValueQueryStringParameters, { x: ['1', '2'], y: ['é'], z: [''] });
  assert.deepEqual([event.headers['x-twice'], event.multiValueHeaders['x-twice'], event.headers.cookie], ['2', ['1', '2'], 'a=1; b=2']);
  assert.deepEqual([event.body, event.isBase64Encoded, event.version, event.rawPath], ['{"a":1}', false, undefined, undefined]);
  const bare = JSON.parse((await f.call()).body);
  assert.deepEqual([bare.resource, bare.pathParameters, bare.queryStringParameters, bare.multiValueQueryStringParameters, bare.body], ['/', null, null, null, null]);
});

for (const [what, headers, body, expected] of [
  ['binary', { 'content-type': 'image/png' }, Buffer.from([0, 255]), ['AP8=', true]],
  ['of no type', {}, Buffer.from([1]), ['AQ==', true]],
  ['compressed', { 'content-type': 'text/plain', 'content-encoding': 'gzip' }, Buffer.from([31]), ['Hw==', true]],
  ['text', { 'content-type': 'text/csv' }, 'ä,b', ['ä,b', false]],
  ['a form', { 'content-type': 'application/x-www-form-urlencoded' }, 'a=b', ['a=b', false]],
  ['xml', { 'content-type': 'application/atom+xml; charset=utf-8' }, '<a/>', ['<a/>', false]],
  ['empty', {}, '', [null, false]],
]) {
  test(`a body that is ${what}`, async (t) => {
    const f = await lambda(t, async (event) => [event.body ?? null, event.isBase64Encoded]);
    assert.deepEqual(JSON.parse((await f.call({ method: 'POST', headers, body })).body), expected);
  });
}

for (const [what, result, status, type, body] of [
  ['a structured result', { statusCode: 201, headers: { 'Content-Type': 'text/plain', 'X-A': 1 }, body: 'é' }, 201, 'text/plain', 'é'],
  ['a status that is a text', { statusCode: '404', body: 'none' }, 404, 'application/json', 'none'],
  ['a body in base64', { statusCode: 200, headers: { 'content-type': 'image/png' }, body: 'AP8=', isBase64Encoded: true }, 200, 'image/png', Buffer.from([0, 255]).toString()],
  ['a result without body', { statusCode: 204 }, 204, 'application/json', ''],
  ['an object', { hello: 'you' }, 200, 'application/json', '{"hello":"you"}'],
  ['a text', 'Hello', 200, 'application/json', 'Hello'],
  ['nothing', undefined, 200, 'application/json', 'null'],
]) {
  test(`${what} is an answer`, async (t) => {
    const f = await lambda(t, async () => result);
    const answer = await f.call();
    assert.deepEqual([answer.status, answer.headers['content-type'], answer.body], [status, type, body]);
  });
}

test('cookies and repeated headers', async (t) => {
  const f = await lambda(t, async () => ({ statusCode: 200, cookies: ['a=1', 'b=2'], multiValueHeaders: { 'x-m': ['1', '2'] }, body: '' }));
  const { headers } = await f.call();
  assert.deepEqual(headers['set-cookie'], ['a=1', 'b=2']);
  assert.equal(headers['x-m'], '1, 2');
});

test('the context knows the call, its deadline and the function', async (t) => {
  const f = await lambda(t, async (event, context) => [
    context.awsRequestId, context.functionName, context.getRemainingTimeInMillis(), Number(context.memoryLimitInMB) > 0,
  ]);
  const answer = await f.call({ headers: { 'x-epsilon-request-id': 'context-01', 'x-epsilon-deadline-ms': '1500' } });
  const [id, name, left, memory] = JSON.parse(answer.body);
  assert.deepEqual([id, name, memory], ['context-01', 'f', true]);
  assert.ok(left > 0 && left <= 1500, left);
});

test('callbacks', async (t) => {
  const f = await lambda(t, (event, context, callback) => {
    setImmediate(() => callback(event.rawPath === '/bad' ? new Error('no') : null, { statusCode: 202, body: 'cb' }));
  });
  assert.equal((await f.call()).body, 'cb');
  assert.equal((await f.call({ path: '/bad' })).headers['x-epsilon-outcome'], 'threw');
});

const ANSWER = { statusCode: 201, body: 'later' };
const finish = (context) => context.succeed(ANSWER);
const later = (fn) => { setTimeout(fn, 5); };
const declared = (event, context, callback) => setTimeout(callback, 5, null, ANSWER); // returns a timer
for (const [what, func] of [
  ['context.succeed', (event, context) => later(() => context.succeed(ANSWER))],
  ['context.done', (event, context) => later(() => context.done(null, ANSWER))],
  ['context.succeed of a context with a default', (event = {}, context = {}) => later(() => context.succeed(ANSWER))],
  ['a context that is handed on', (event, context) => later(() => finish(context))],
  ['a context behind an event that is taken apart', ({ a, b }, context) => later(() => finish(context))],
  ['a context that is kept', (event, context) => { const ctx = context; later(() => ctx.succeed(ANSWER)); }],
  ['a context that is taken apart', (event, { done }) => later(() => done(null, ANSWER))],
  ['a callback with a default', (event, context, callback = () => {}) => later(() => callback(null, ANSWER))],
  ['a callback among the rest', (...args) => later(() => args[2](null, ANSWER))],
  ['arguments[2]', function () { later(() => arguments[2](null, ANSWER)); }],
  ['a function that is wrapped', function () { return declared.apply(this, arguments); }],
  ['a function that is bound', (function () { return declared.apply(this, arguments); }).bind(null)],
  ['a callback within its own turn', (...args) => args[2](null, ANSWER)],
]) {
  test(`${what} answers`, async (t) => {
    const f = await lambda(t, func);
    const answer = await f.call();
    assert.deepEqual([answer.status, answer.body], [201, 'later']);
    await until(() => f.instance.active === 0, 'the end of the call');
  });
}

test('context.fail and context.done of an error are failures', async (t) => {
  for (const func of [(event, context) => later(() => context.fail(new Error('no'))), (event, context) => later(() => context.done(new Error('no')))]) {
    const f = await lambda(t, func);
    assert.equal((await f.call()).headers['x-epsilon-outcome'], 'threw');
  }
});

test('a handler that returns nothing and has no callback answers null', async (t) => {
  for (const func of [() => {}, (event) => void event.a, async (event, context) => void context.a, (event) => { const s = 'job done'; void s; }, ({ body = '' }) => { void body; }, (event) => { if (event.fail) throw event; }, (event, context) => void context.awsRequestId]) {
    const f = await lambda(t, func);
    assert.deepEqual([(await f.call()).body], ['null']);
  }
});

test('a handler that never calls back is named in the log', async (t) => {
  const f = await lambda(t, (event, context, callback) => { void callback; });
  const open = head(f.socket, { headers: { 'x-epsilon-deadline-ms': '50' } });
  await until(() => f.logged.length > 0, 'the line');
  assert.match(f.logged[0].message, /ended without an answer; is a `callback\(\)` missing/);
  for (const { res } of f.instance.calls) res.destroy(); // as the agent would
  await assert.rejects(open);
});

test('what a handler returns at once is its answer, with a context too', async (t) => {
  for (const [func, body] of [[(event, context) => ({ id: context.functionName }), '{"id":"f"}'], [(event, context) => [context.functionName], '["f"]'], [(event, context) => context.functionName, 'f']]) {
    const f = await lambda(t, func);
    assert.equal((await f.call()).body, body);
  }
});

test('a handler that is not async', async (t) => {
  const f = await lambda(t, () => ({ statusCode: 203, body: 'sync' }));
  assert.equal((await f.call()).status, 203);
});

test('what is not a result is a failure', async (t) => {
  for (const result of [{ statusCode: 'abc' }, { statusCode: 20 }, { statusCode: 200, headers: { 'bad name': 'x' } }]) {
    const f = await lambda(t, async () => result);
    assert.equal((await f.call()).headers['x-epsilon-outcome'], 'threw');
    assert.equal(f.logged[0].level, 'error');
  }
});

test('a body over the limit never reaches the function', async (t) => {
  const f = await lambda(t, () => assert.fail('called'), { bodyLimit: 10 });
  const answer = await f.call({ method: 'POST', body: Buffer.alloc(100_000) });
  assert.deepEqual([answer.status, JSON.parse(answer.body).error.code], [413, 'BODY_TOO_LARGE']);
  await until(() => f.instance.active === 0, 'the end of the call');
});
