'use strict';
// What the gateway's headers become in every signature: the path prefix of the function, and the caller.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const express = require('express');
const { serve } = require('./support/serve.js');
const { folder } = require('./support/process.js');

const BELOW = { 'x-forwarded-prefix': '/shop' };
const CALLER = { 'x-forwarded-for': '203.0.113.7, 198.51.100.1', 'x-forwarded-proto': 'https', 'x-forwarded-host': 'a.example.com' };

const paths = (req) => [req.baseUrl, req.originalUrl, req.url];

test('a (req, res) function gets its prefix', async (t) => {
  const f = await serve(t, (req, res) => res.json(paths(req)));
  assert.equal((await f.call({ path: '/a?b=1', headers: BELOW })).body, '["/shop","/shop/a?b=1","/a?b=1"]');
  assert.equal((await f.call({ path: '/a?b=1' })).body, '["","/a?b=1","/a?b=1"]');
});

test('an exported application gets its prefix as mount path', async (t) => {
  const router = express.Router().get('/paths', (req, res) => res.json(paths(req)));
  const app = express().get('/paths', (req, res) => res.json(paths(req))).use('/in', router);
  const f = await serve(t, app);
  assert.equal((await f.call({ path: '/paths', headers: BELOW })).body, '["/shop","/shop/paths","/paths"]');
  assert.equal((await f.call({ path: '/in/paths', headers: BELOW })).body, '["/shop/in","/shop/in/paths","/paths"]');
  assert.equal((await f.call({ path: '/paths' })).body, '["","/paths","/paths"]');
});

test('forwarded headers are ignored without a gateway', async (t) => {
  const f = await serve(t, (req, res) => res.json([...paths(req), req.ip ?? null, req.secure]), { behindGateway: false });
  assert.equal((await f.call({ headers: { ...BELOW, ...CALLER } })).body, '["","/","/",null,false]');
});

test('the redirect of a folder stays below the prefix', async (t) => {
  const root = folder(t);
  fs.mkdirSync(path.join(root, 'docs'));
  const f = await serve(t, express().use(express.static(root)));
  assert.equal((await f.call({ path: '/docs', headers: BELOW })).headers.location, '/shop/docs/');
});

const LOCATIONS = [
  ['/home', '/shop/home'],
  ['/', '/shop/'],
  ['/shopping', '/shop/shopping'],
  ['/shop', '/shop'],
  ['/shop/home', '/shop/home'],
  ['/shop?a', '/shop?a'],
  ['home', 'home'],
  ['//elsewhere.example/x', '//elsewhere.example/x'],
  ['https://elsewhere.example/x', 'https://elsewhere.example/x'],
];
const REDIRECTS = {
  'res.redirect': [(req, res) => res.redirect(req.query.to)],
  'res.writeHead': [(req, res) => res.writeHead(302, { LOCATION: req.query.to }).end()],
  'res.writeHead of a list': [(req, res) => res.writeHead(302, ['location', req.query.to]).end()],
  'an application': [express().get('/', (req, res) => res.redirect(req.query.to))],
  'plain http': [(req, res) => {
    res.statusCode = 201;
    res.setHeader('Location', new URL(req.url, 'http://x').searchParams.get('to'));
    res.end();
  }],
  fetch: [{ fetch: (request) => new Response(null, { status: 302, headers: { location: new URL(request.url).searchParams.get('to') } }) }],
  lambda: [async (event) => ({ statusCode: 302, headers: { location: event.queryStringParameters.to } }), 'lambda'],
};
for (const [what, [func, signature]] of Object.entries(REDIRECTS)) {
  test(`a Location that is a path stays below the prefix: ${what}`, async (t) => {
    const f = await serve(t, func, { signature });
    for (const [to, expected] of LOCATIONS) {
      const request = { path: `/?to=${encodeURIComponent(to)}` };
      assert.equal((await f.call({ ...request, headers: BELOW })).headers.location, expected, to);
      assert.equal((await f.call(request)).headers.location, to);
    }
  });
}

test('fetch() and Lambda see the path after the prefix', async (t) => {
  const f = await serve(t, { fetch: (request) => Response.json([new URL(request.url).pathname, request.headers.get('x-forwarded-prefix')]) });
  assert.equal((await f.call({ path: '/a', headers: BELOW })).body, '["/a","/shop"]');
});

const who = (req) => [req.ip ?? null, req.socket.remoteAddress ?? null, req.socket.remoteFamily ?? null, req.secure, req.protocol, req.hostname];
for (const [what, func] of [
  ['a (req, res) function', (req, res) => res.json(who(req))],
  ['an exported application', express().get('/', (req, res) => res.json(who(req)))],
  ['a mounted application', express().use(express().get('/', (req, res) => res.json(who(req))))],
]) {
  test(`${what} sees the caller`, async (t) => {
    const f = await serve(t, func);
    assert.deepEqual(JSON.parse((await f.call({ headers: CALLER })).body), ['203.0.113.7', '203.0.113.7', 'IPv4', true, 'https', 'a.example.com']);
    const v6 = { 'x-forwarded-for': '2001:db8::7', 'x-forwarded-proto': 'http', host: 'b.example.com' };
    assert.deepEqual(JSON.parse((await f.call({ headers: v6 })).body), ['2001:db8::7', '2001:db8::7', 'IPv6', false, 'http', 'b.example.com']);
  });
}

test('an application keeps its own `trust proxy`', async (t) => {
  const app = express().set('trust proxy', false).get('/', (req, res) => res.json([req.app.get('trust proxy'), ...who(req)]));
  const f = await serve(t, app);
  assert.deepEqual(JSON.parse((await f.call({ headers: { ...CALLER, host: 'b.example.com' } })).body), [
    false, '203.0.113.7', '203.0.113.7', 'IPv4', true, 'https', 'b.example.com',
  ]);
});

test('express-rate-limit accepts the application', async (t) => {
  // Its checks: no address; a forwarded address that is not trusted; trust in everybody.
  const app = express().get('/', (req, res) => res.json([req.ip === undefined, req.app.get('trust proxy') === false, req.app.get('trust proxy') === true]));
  const f = await serve(t, app);
  assert.equal((await f.call({ headers: CALLER })).body, '[false,false,false]');
});

test('plain http code and Koa see the caller', async (t) => {
  const f = await serve(t, (req, res) => res.end(`${req.socket.remoteAddress} ${req.connection.encrypted}`));
  assert.equal((await f.call({ headers: CALLER })).body, '203.0.113.7 true');
});

test('an upgrade sees the caller', async (t) => {
  const http = require('node:http');
  const f = await serve(t, { func: () => {}, upgrade: (req, socket) => {
    socket.end(`HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: x\r\nx-caller: ${req.socket.remoteAddress}\r\n\r\n`);
  } });
  const headers = { ...CALLER, connection: 'Upgrade', upgrade: 'x' };
  const caller = await new Promise((resolve, reject) => {
    http.get({ socketPath: f.socket, headers }).on('error', reject).on('upgrade', (res, socket) => {
      socket.end();
      resolve(res.headers['x-caller']);
    });
  });
  assert.equal(caller, '203.0.113.7');
});
