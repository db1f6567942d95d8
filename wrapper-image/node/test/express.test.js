'use strict';
// `(req, res)` functions: bodies, streams, `next`, view engines of the project, exported applications.

const assert = require('node:assert/strict');
const { test } = require('node:test');
const express = require('express');
const { head, until } = require('./support/http.js');
const { project, ready } = require('./support/process.js');
const { serve } = require('./support/serve.js');

const json = (body, headers = {}) => ({ method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body });

test('rawBody keeps the bytes that were parsed', async (t) => {
  const f = await serve(t, (req, res) => res.json([req.rawBody.toString(), req.body]));
  assert.equal((await f.call(json('{ "a" : 1 }'))).body, '["{ \\"a\\" : 1 }",{"a":1}]');
});

test('any JSON value is a body', async (t) => {
  const f = await serve(t, (req, res) => res.json({ got: req.body }));
  for (const value of ['3', 'null', '"x"', '[]', 'false']) assert.equal((await f.call(json(value))).body, `{"got":${value}}`);
});

test('a compressed body is unpacked', async (t) => {
  const f = await serve(t, (req, res) => res.json([req.body, req.rawBody.toString()]));
  const packed = require('node:zlib').gzipSync('{"a":1}');
  assert.equal((await f.call(json(packed, { 'content-encoding': 'gzip' }))).body, '[{"a":1},"{\\"a\\":1}"]');
});

test('multipart stays a stream', async (t) => {
  const f = await serve(t, async (req, res) => {
    let text = '';
    for await (const chunk of req) text += chunk;
    res.json([text, req.body === undefined]);
  });
  const answer = await f.call({ method: 'POST', headers: { 'content-type': 'multipart/form-data; boundary=b' }, body: '--b--' });
  assert.equal(answer.body, '["--b--",true]');
});

test('parseBody: false streams an upload of any size', async (t) => {
  const f = await serve(t, { parseBody: false, func: async (req, res) => {
    let bytes = 0;
    for await (const chunk of req) {
      if (bytes === 0) res.write('first '); // answered before the upload ended
      bytes += chunk.length;
    }
    res.end(String(bytes));
  } }, { bodyLimit: 10 });
  let upload;
  const answer = await head(f.socket, { method: 'POST', headers: { 'content-type': 'application/json' }, body: (req) => {
    upload = req;
    req.write(Buffer.alloc(1000));
  } });
  let seen = '';
  answer.on('data', (chunk) => (seen += chunk));
  await until(() => seen === 'first ', 'the first bytes');
  upload.end(Buffer.alloc(500_000));
  await until(() => seen === 'first 501000', 'the count');
});

test('a response streams while it is written', async (t) => {
  const f = await serve(t, (req, res) => {
    res.type('text/event-stream');
    res.write('data: 1\n\n');
    f.go = () => res.end('data: 2\n\n');
  });
  const answer = await head(f.socket, {});
  assert.equal(String(await new Promise((resolve) => answer.once('data', resolve))), 'data: 1\n\n');
  assert.equal(f.instance.active, 1);
  f.go();
  assert.equal(String(await new Promise((resolve) => answer.once('data', resolve))), 'data: 2\n\n');
  await until(() => f.instance.active === 0, 'the end of the call');
});

test('next(err) responds according to the status of the error', async (t) => {
  const f = await serve(t, (req, res, next) => next(Object.assign(new Error('no'), { status: Number(req.query.s) })));
  t.mock.method(console, 'error', () => {});
  assert.equal((await f.call({ path: '/?s=403' })).status, 403);
  assert.equal(f.logged.length, 0);
  assert.equal((await f.call({ path: '/?s=503' })).status, 503);
  assert.equal(f.logged.length, 1);
  for (const status of ['none', '500']) {
    const failed = await f.call({ path: `/?s=${status}` });
    assert.deepEqual([failed.status, failed.headers['x-epsilon-outcome']], [500, 'threw']);
  }
});

test('a view engine is found in the project', async (t) => {
  const root = project(t, {
    'node_modules/tiny/index.js': 'exports.__express = (file, options, done) => done(null, `${options.who} from ${file.slice(-8)}`);',
    'views/x.tiny': '',
  });
  const f = await serve(t, (req, res) => res.render('x.tiny', { who: 'ann' }), { root });
  assert.equal((await f.call()).body, 'ann from s/x.tiny');
});

test('an exported Express application works as with app.listen', async (t) => {
  const app = express();
  app.use(express.json({ verify: (req) => (req.verified = true) }));
  app.post('/items/:id', (req, res) => res.status(201).json([req.params, req.body, req.query, req.verified, req.rawBody]));
  const f = await serve(t, app);
  const answer = await f.call({ ...json('{"a":1}'), path: '/items/7?x=y' });
  assert.deepEqual([answer.status, JSON.parse(answer.body)], [201, [{ id: '7' }, { a: 1 }, { x: 'y' }, true, null]]);
  assert.equal((await f.call({ path: '/none' })).status, 404);
});

test('a router is a function too', async (t) => {
  const router = express.Router();
  router.get('/a/:b', (req, res) => res.send(req.params.b));
  const f = await serve(t, router);
  assert.equal((await f.call({ path: '/a/c' })).body, 'c');
  assert.equal((await f.call({ path: '/x' })).status, 404);
});

test('names of Object.prototype pollute nothing', async (t) => {
  const f = await serve(t, (req, res) => res.json([req.body, req.query.__proto__ === undefined, {}.polluted ?? null]));
  const answer = await f.call({ ...json('{"__proto__":{"polluted":1}}'), path: '/?__proto__[polluted]=1&constructor=2' });
  assert.equal(JSON.parse(answer.body)[2], null);
  const form = await f.call({ method: 'POST', headers: { 'content-type': 'application/x-www-form-urlencoded' }, body: '__proto__[polluted]=1' });
  assert.deepEqual(JSON.parse(form.body), [{}, true, null]);
});

test('a caller that disconnects fires close; the call lasts', async (t) => {
  const f = await ready(t, `
    let release; const gate = new Promise((resolve) => (release = resolve));
    exports.f = async (req, res) => {
      if (req.path === '/release') { release(); return res.send('ok'); }
      req.on('close', () => console.log('req closed'));
      res.on('close', () => console.log('res closed'));
      console.log('inside');
      await gate;
      res.send('nobody reads this');
    };`);
  const gone = f.head({ path: '/slow', headers: { 'x-epsilon-request-id': 'gone-0001' }, body: (req) => {
    req.end();
    f.record((r) => r.message === 'inside').then(() => req.destroy());
  } });
  await assert.rejects(gone);
  const closed = await f.record((r) => r.message === 'res closed');
  assert.equal(closed.request_id, 'gone-0001');
  await f.record((r) => r.message === 'req closed' && r.request_id === 'gone-0001');
  assert.equal((await f.health()).active, 1);
  await f.call({ path: '/release' });
  await until(async () => (await f.health()).active === 0, 'the handler to end');
});

test('a caller that disconnects while sending calls no function', async (t) => {
  const f = await serve(t, () => assert.fail('called'));
  const gone = head(f.socket, { method: 'POST', headers: { 'content-type': 'application/json', 'content-length': 100 }, body: (req) => {
    req.write('{');
    until(() => f.instance.active === 1, 'the call').then(() => req.destroy());
  } });
  await assert.rejects(gone);
  await until(() => f.instance.active === 0, 'the end of the call');
  assert.deepEqual(f.logged, []);
});
