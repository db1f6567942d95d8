'use strict';
// `export default { fetch }`: requests, responses and streams of the web platform.

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { head, until } = require('./support/http.js');
const { serve } = require('./support/serve.js');

const HEAD = { status: 201, headers: [['content-type', 'text/plain'], ['set-cookie', 'a=1'], ['set-cookie', 'b=2']] };
const web = (t, fetch) => serve(t, { fetch });

test('the request is a Request', async (t) => {
  const f = await web(t, async (request, env, ctx) => Response.json([
    request instanceof Request, request.method, request.url, request.headers.get('x-a'), await request.text(),
    env.PATH === process.env.PATH, typeof ctx.waitUntil,
  ]));
  const answer = await f.call({
    method: 'POST', path: '/a%20b?c=d', body: 'é',
    headers: { host: 'f.example.com', 'x-forwarded-proto': 'https', 'x-a': ['1', '2'] },
  });
  assert.deepEqual(JSON.parse(answer.body), [true, 'POST', 'https://f.example.com/a%20b?c=d', '1, 2', 'é', true, 'function']);
});

test('`this` is the exported object', async (t) => {
  const f = await serve(t, { word: 'mine', fetch() { return new Response(this.word); } });
  assert.equal((await f.call()).body, 'mine');
});

test('of a router with a Proxy only fetch is read', async (t) => {
  const router = {
    __proto__: new Proxy({}, { get: (target, name, self) => (route) => self.routes.push(`${name} ${route}`) && self }),
    routes: [],
    fetch() { return new Response(this.routes.join()); },
  };
  const f = await serve(t, router.get('/a').post('/b'));
  assert.equal((await f.call({ headers: { connection: 'Upgrade', upgrade: 'x' } })).body, 'get /a,post /b');
});

test('the response is sent as it is', async (t) => {
  const f = await web(t, () => {
    const headers = new Headers({ 'content-type': 'text/plain', 'x-a': 'b' });
    headers.append('set-cookie', 'a=1; Expires=Thu, 01 Jan 1970 00:00:00 GMT');
    headers.append('set-cookie', 'b=2');
    return new Response('body', { status: 418, statusText: 'Teapot', headers });
  });
  const answer = await f.call();
  assert.deepEqual([answer.status, answer.body, answer.headers['x-a']], [418, 'body', 'b']);
  assert.deepEqual(answer.headers['set-cookie'], ['a=1; Expires=Thu, 01 Jan 1970 00:00:00 GMT', 'b=2']);
});

test('responses without a body', async (t) => {
  const f = await web(t, (request) => (request.method === 'HEAD' ? new Response('x') : new Response(null, { status: 204 })));
  assert.equal((await f.call()).status, 204);
  const answer = await f.call({ method: 'HEAD' });
  assert.deepEqual([answer.status, answer.body], [200, '']);
});

test('both directions stream', async (t) => {
  const f = await web(t, (request) => {
    const upper = new TransformStream({ transform: (chunk, to) => to.enqueue(Buffer.from(String(Buffer.from(chunk)).toUpperCase())) });
    return new Response(request.body.pipeThrough(upper));
  });
  let upload;
  const answer = await head(f.socket, { method: 'POST', body: (req) => {
    upload = req;
    req.flushHeaders();
  } });
  let seen = '';
  answer.on('data', (chunk) => (seen += chunk));
  upload.write('one ');
  await until(() => seen === 'ONE ', 'the first word');
  upload.end('two');
  await until(() => seen === 'ONE TWO', 'the second word');
  await until(() => f.instance.active === 0, 'the end of the call');
});

test('the head of a slow stream does not wait for its body', async (t) => {
  const f = await web(t, () => new Response(new ReadableStream({ start(to) { f.to = to; } })));
  const answer = await head(f.socket, {});
  assert.equal(answer.statusCode, 200);
  f.to.enqueue(Buffer.from('late'));
  f.to.close();
  assert.equal(String(await new Promise((resolve) => answer.once('data', resolve))), 'late');
});

test('a slow reader slows the function down', async (t) => {
  let pulled = 0;
  const f = await web(t, () => new Response(new ReadableStream({ pull(to) {
    pulled += 1;
    to.enqueue(Buffer.alloc(64 * 1024));
  } })));
  const answer = await head(f.socket, {}); // and never read
  let before;
  await until(() => before === (before = pulled) && pulled > 1, 'the stream to stand still');
  assert.ok(pulled < 500, `${pulled} chunks of 64 KiB without a reader`);
  answer.destroy();
});

test('a caller that disconnects aborts the signal and cancels the body', async (t) => {
  const seen = [];
  const f = await web(t, (request) => {
    request.signal.addEventListener('abort', () => seen.push('abort'));
    return new Response(new ReadableStream({ start: (to) => to.enqueue(Buffer.from('x')), cancel: () => seen.push('cancel') }));
  });
  const answer = await head(f.socket, {});
  answer.destroy();
  await until(() => seen.length === 2 && f.instance.active === 0, 'both');
});

test('waitUntil keeps the call active', async (t) => {
  let done;
  const f = await web(t, (request, env, ctx) => {
    ctx.waitUntil(new Promise((resolve) => (done = resolve)));
    return new Response('answered');
  });
  assert.equal((await f.call()).body, 'answered');
  assert.equal(f.instance.active, 1);
  done();
  await until(() => f.instance.active === 0, 'the end of the call');
});

test('a value other than a Response is a failure', async (t) => {
  const f = await web(t, () => 'text');
  assert.equal((await f.call()).headers['x-epsilon-outcome'], 'threw');
  assert.match(f.logged[0].message, /must return a Response/);
});

test('a body that fails halfway cuts the connection', async (t) => {
  const f = await web(t, () => new Response(new ReadableStream({ start(to) {
    to.enqueue(Buffer.from('half'));
    f.to = to;
  } })));
  const answer = await head(f.socket, {});
  answer.once('data', () => f.to.error(new Error('broken source')));
  const error = await new Promise((resolve) => answer.on('error', resolve));
  assert.equal(error.code, 'ECONNRESET');
  await until(() => f.logged.length === 1 && f.instance.active === 0, 'the log');
  assert.match(f.logged[0].message, /broken source/);
});

for (const [what, handler] of [
  ['a function', (request) => new Response(`${request.method} ${request.query.a}`, HEAD)],
  ['an async function', async ({ method, query }) => new Response(`${method} ${query.a}`, HEAD)],
  ['a function of no declared parameter', function () { return new Response(`${arguments[0].method} ${arguments[0].query.a}`, HEAD); }],
  ['{ func }', { func: (request) => new Response(`${request.method} ${request.query.a}`, HEAD) }],
]) {
  test(`${what} without \`res\` answers with the Response that it returns`, async (t) => {
    const f = await serve(t, handler);
    const answer = await f.call({ path: '/?a=1' });
    assert.deepEqual([answer.status, answer.body, answer.headers['content-type']], [201, 'GET 1', 'text/plain']);
    assert.deepEqual(answer.headers['set-cookie'], ['a=1', 'b=2']);
    await until(() => f.instance.active === 0, 'the end of the call');
  });
}

test('a Response that a function without `res` returns is streamed', async (t) => {
  const f = await serve(t, () => new Response(new ReadableStream({ start(to) { f.to = to; } })));
  const answer = await head(f.socket, {});
  f.to.enqueue(Buffer.from('part'));
  assert.equal(String(await new Promise((resolve) => answer.once('data', resolve))), 'part');
  f.to.error(new Error('broken source'));
  assert.equal((await new Promise((resolve) => answer.on('error', resolve))).code, 'ECONNRESET');
  await until(() => f.logged.length === 1 && f.instance.active === 0, 'the log');
});

test('a Response returned by a function with `res` is ignored', async (t) => {
  const late = await serve(t, (req, res) => {
    setTimeout(() => res.send('mine'), 5);
    return Promise.resolve(new Response('upstream'));
  });
  const sent = await serve(t, function () {
    arguments[1].send('mine');
    return new Response('upstream');
  });
  for (const f of [late, sent]) assert.equal((await f.call()).body, 'mine');
  assert.deepEqual([...late.logged, ...sent.logged], []);
});
