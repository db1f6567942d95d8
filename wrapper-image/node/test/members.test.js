'use strict';
// Every documented member of Express 5's `req` and `res`, run against plain Express and against the wrapper:
// same status, same headers, same body.

process.env.NODE_ENV = 'production'; // no stacks in Express's error pages: they differ, being another stack

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const express = require('express');
const { listen } = require('../lib/server.js');
const { call } = require('./support/http.js');
const { folder, project } = require('./support/process.js');
const { serve } = require('./support/serve.js');

const FORWARDED = {
  host: 'a.b.example.com:8443', 'x-forwarded-for': '203.0.113.7', 'x-forwarded-proto': 'https',
  'x-forwarded-host': 'shop.tea.example.org:444',
};
const ACCEPT = {
  accept: 'text/html;q=0.5, application/json', 'accept-language': 'de, en;q=0.4',
  'accept-encoding': 'gzip, br;q=0.2', 'accept-charset': 'utf-8, iso-8859-1;q=0.2',
};
const JSON_BODY = { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"a":[1,{"b":2}]}' };
const show = (read) => (req, res) => res.json({ shown: read(req, res) ?? 'undefined' });

/** name -> [handler, request]. The handler also gets a folder with files. */
const REQ = {
  'req.app': [show((req) => [typeof req.app.get, req.app.get('env'), req.app.get('etag'), req.app.enabled('trust proxy'), req.app.locals.settings === req.app.settings])],
  'req.baseUrl': [show((req) => req.baseUrl), { path: '/a/b' }],
  'req.body json': [show((req) => req.body), JSON_BODY],
  'req.body +json': [show((req) => req.body), { ...JSON_BODY, headers: { 'content-type': 'application/vnd.x+json; charset=utf-8' } }],
  'req.body form': [show((req) => req.body), { method: 'POST', headers: { 'content-type': 'application/x-www-form-urlencoded' }, body: 'a=1&b[c]=2&d=%C3%A9+x' }],
  'req.body text': [show((req) => req.body), { method: 'PUT', headers: { 'content-type': 'text/plain; charset=latin1' }, body: Buffer.from('caf\xe9', 'latin1') }],
  'req.body raw': [show((req) => [Buffer.isBuffer(req.body), req.body.toString('hex')]), { method: 'POST', headers: { 'content-type': 'application/octet-stream' }, body: Buffer.from([0, 255, 7]) }],
  'req.body none': [show((req) => ['body' in req, req.body === undefined])],
  'req.cookies without a parser': [show((req) => [req.cookies, req.signedCookies])],
  'req.fresh, req.stale': [(req, res) => { res.set('ETag', '"x"'); res.json([req.fresh, req.stale]); }, { headers: { 'if-none-match': '"y"' } }],
  'req.fresh answers 304': [(req, res) => { res.set('ETag', '"x"'); res.send('never sent'); }, { headers: { 'if-none-match': '"x"' } }],
  'req.host': [show((req) => req.host), { headers: FORWARDED }],
  'req.hostname': [show((req) => req.hostname), { headers: FORWARDED }],
  'req.hostname v6': [show((req) => req.hostname), { headers: { host: '[::1]:80' } }],
  'req.ip': [show((req) => req.ip), { headers: FORWARDED }],
  'req.ips': [show((req) => req.ips), { headers: { ...FORWARDED, 'x-forwarded-for': '198.51.100.1, 203.0.113.7' } }],
  'req.method': [show((req) => req.method), { method: 'PATCH' }],
  'req.originalUrl, req.url': [show((req) => [req.originalUrl, req.url]), { path: '/a%20b/../c?q=%3F&r' }],
  'req.params': [show((req) => [req.params, typeof req.params])],
  'req.path': [show((req) => req.path), { path: '/a%20b/../c?q=1' }],
  'req.protocol, req.secure': [show((req) => [req.protocol, req.secure]), { headers: FORWARDED }],
  'req.protocol without proxy': [show((req) => [req.protocol, req.secure])],
  'req.query': [show((req) => req.query), { path: '/?a=1&a=2&b[c]=3&d&e=%20x+y' }],
  'req.query none': [show((req) => [Object.keys(req.query), Object.getPrototypeOf(req.query) === null])],
  'req.query is computed, as in Express 5': [show((req) => { req.url = '/?z=9'; return req.query; }), { path: '/?a=1' }],
  'req.res, res.req': [show((req, res) => [req.res === res, res.req === req])],
  'req.route': [show((req) => req.route)],
  'req.subdomains': [show((req) => req.subdomains), { headers: FORWARDED }],
  'req.xhr': [show((req) => req.xhr), { headers: { 'x-requested-with': 'XMLHttpRequest' } }],
  'req.accepts()': [show((req) => [req.accepts('html'), req.accepts(['json', 'text']), req.accepts('image/png'), req.accepts()]), { headers: ACCEPT }],
  'req.acceptsCharsets()': [show((req) => [req.acceptsCharsets('iso-8859-1', 'utf-8'), req.acceptsCharsets()]), { headers: ACCEPT }],
  'req.acceptsEncodings()': [show((req) => [req.acceptsEncodings('br', 'gzip'), req.acceptsEncodings()]), { headers: ACCEPT }],
  'req.acceptsLanguages()': [show((req) => [req.acceptsLanguages('en', 'de'), req.acceptsLanguages('fr')]), { headers: ACCEPT }],
  'req.get(), req.header()': [show((req) => [req.get('X-THING'), req.header('x-thing'), req.get('Referrer'), req.get('none')]), { headers: { 'x-thing': 'v', referer: 'r' } }],
  'req.is()': [show((req) => [req.is('json'), req.is('html', 'application/*'), req.is('text')]), JSON_BODY],
  'req.range()': [show((req) => [req.range(1000), req.range(1000).type]), { headers: { range: 'bytes=0-9,20-' } }],
  'req is a stream': [show((req) => [typeof req.pipe, req.readableEnded, req.complete, req instanceof require('node:http').IncomingMessage])],
};
const RES = {
  'res.app': [show((req, res) => res.app === req.app)],
  'res.headersSent': [(req, res) => { const before = res.headersSent; res.write('x'); res.end(String([before, res.headersSent])); }],
  'res.locals': [show((req, res) => { res.locals.user = 'ann'; return [res.locals, Object.getPrototypeOf(res.locals) === null]; })],
  'res.append()': [(req, res) => res.append('Warning', '199 a').append('Warning', ['b', 'c']).append('X-One', 'd').send('x')],
  'res.attachment()': [(req, res) => res.attachment('dir/grüße.png').send('x')],
  'res.attachment() bare': [(req, res) => res.attachment().send('x')],
  'res.cookie()': [(req, res) => res.cookie('a', 'ü;').cookie('b', { c: 1 }, { httpOnly: true, sameSite: 'lax', secure: true, expires: new Date(0), path: '/x' }).send('x')],
  'res.cookie() signed needs a secret': [(req, res) => { try { res.cookie('a', 'b', { signed: true }); } catch (err) { res.send(err.message); } }],
  'res.clearCookie()': [(req, res) => res.clearCookie('a', { path: '/admin' }).send('x')],
  'res.download()': [(req, res, dir) => res.download(path.join(dir, 'file.txt'), 'other.txt')],
  'res.end()': [(req, res) => res.status(202).end()],
  'res.end() after write()': [(req, res) => { res.write('a'); res.write('b'); res.end('c'); }],
  'res.format()': [(req, res) => res.format({ text: () => res.send('t'), html: () => res.send('h'), json: () => res.send({ j: 1 }) }), { headers: ACCEPT }],
  'res.format() default': [(req, res) => res.format({ 'image/png': () => res.send('t'), default: () => res.send('d') }), { headers: ACCEPT }],
  'res.format() 406': [(req, res) => res.format({ 'image/png': () => res.send('t') }), { headers: ACCEPT }],
  'res.get()': [(req, res) => res.set('X-A', 'b').send(res.get('x-a'))],
  'res.json()': [(req, res) => res.json({ a: 'é', b: [null, 1.5], c: undefined, d: new Date(0) })],
  'res.json() null': [(req, res) => res.json(null)],
  'res.json() with a type': [(req, res) => res.type('application/problem+json').json({ a: 1 })],
  'res.jsonp()': [(req, res) => res.jsonp({ a: '\u2028' }), { path: '/?callback=cb.x%3B' }],
  'res.jsonp() without a callback': [(req, res) => res.jsonp({ a: 1 })],
  'res.links()': [(req, res) => res.links({ next: 'http://x/2', last: ['http://x/5', 'http://x/6'] }).send('x')],
  'res.location()': [(req, res) => res.location('/a b?c=é').send('x')],
  'res.redirect()': [(req, res) => res.redirect('/other?a=<b>'), { headers: { accept: 'text/html' } }],
  'res.redirect() status': [(req, res) => res.redirect(301, 'http://x/'), { headers: { accept: 'text/plain' } }],
  'res.redirect() HEAD': [(req, res) => res.redirect('/x'), { method: 'HEAD' }],
  'res.render()': [(req, res, dir) => { withEngine(req.app, dir); res.locals.who = 'ann'; res.render('page.shout', { greeting: 'hello' }); }],
  'res.render() callback': [(req, res, dir) => { withEngine(req.app, dir); res.render('page.shout', { greeting: 'hi' }, (err, text) => res.send(`${err} ${text}`)); }],
  'res.send() text': [(req, res) => res.send('Grüße')],
  'res.send() buffer': [(req, res) => res.send(Buffer.from([1, 2, 255]))],
  'res.send() typed array': [(req, res) => res.send(new Uint8Array([1, 2]))],
  'res.send() object': [(req, res) => res.send({ a: 1 })],
  'res.send() number and boolean': [(req, res) => res.send(req.query.n ? 42 : true), { path: '/?n=1' }],
  'res.send() nothing': [(req, res) => res.send()],
  'res.send() null': [(req, res) => res.send(null)],
  'res.send() HEAD': [(req, res) => res.send('length only'), { method: 'HEAD' }],
  'res.send() 204': [(req, res) => res.status(204).send('dropped')],
  'res.send() 205': [(req, res) => res.status(205).send('dropped')],
  'res.send() own charset': [(req, res) => res.set('Content-Type', 'text/plain; charset=iso-8859-1').send('é')],
  'res.send() long text': [(req, res) => res.send('x'.repeat(100_000))],
  'res.sendFile()': [(req, res, dir) => res.sendFile('file.txt', { root: dir, headers: { 'x-a': 'b' }, maxAge: '1d', lastModified: false })],
  'res.sendFile() range': [(req, res, dir) => res.sendFile(path.join(dir, 'file.txt'), { lastModified: false }), { headers: { range: 'bytes=2-4' } }],
  'res.sendFile() missing': [(req, res, dir) => res.sendFile(path.join(dir, 'none.txt')), { path: '/some/path' }],
  'res.sendFile() callback': [(req, res, dir) => res.sendFile(path.join(dir, 'none.txt'), (err) => res.send(`${err.status}`))],
  'res.sendFile() outside root': [(req, res, dir) => res.sendFile('../x', { root: dir })],
  'res.sendStatus()': [(req, res) => res.sendStatus(404)],
  'res.sendStatus() unknown': [(req, res) => res.sendStatus(599)],
  'res.set(), res.header()': [(req, res) => res.set({ 'X-A': ['1', '2'], 'Content-Type': 'html' }).header('X-B', 3).send('x')],
  'res.status()': [(req, res) => res.status(418).send('x')],
  'res.status() refuses': [(req, res) => { try { res.status('200'); } catch (err) { res.send(`${err.name} ${err.message}`); } }],
  'res.statusMessage': [(req, res) => { res.statusMessage = 'Fine'; res.send('x'); }],
  'res.type(), res.contentType()': [(req, res) => res.type('.html').contentType('png').send(Buffer.from('x'))],
  'res.vary()': [(req, res) => res.vary('Accept').vary(['Accept', 'Origin']).send('x')],
  'res.writeHead()': [(req, res) => { res.writeHead(201, 'Made', { 'X-A': 'b' }); res.end('x'); }],
  'next()': [(req, res) => req.next(), { path: '/no<where>' }],
};

function withEngine(app, dir) {
  app.engine('shout', (file, options, done) => {
    const text = fs.readFileSync(file, 'utf8').replaceAll('GREETING', options.greeting).replaceAll('WHO', options.who);
    done(null, `${text} ${options.settings.env}`);
  });
  app.set('views', path.join(dir, 'views'));
}

async function plainExpress(t, handler, behindGateway) {
  const app = express();
  app.disable('x-powered-by');
  if (behindGateway) app.set('trust proxy', () => true); // the gateway vouches for every entry
  app.use(
    express.json({ type: ['application/json', '+json'], strict: false }),
    express.urlencoded({ extended: true }),
    express.text({ type: 'text/*' }),
    express.raw(),
    handler,
  );
  const server = require('node:http').createServer(app);
  const socket = path.join(folder(t), 'plain.sock');
  await listen(server, { path: socket });
  t.after(() => server.close());
  return socket;
}

/** What can differ between two equal answers: the clock, and the age of a file in its ETag. */
function comparable({ status, rawHeaders, body }) {
  const headers = [];
  for (let i = 0; i < rawHeaders.length; i += 2) {
    if (rawHeaders[i] !== 'Date') headers.push(`${rawHeaders[i]}: ${rawHeaders[i + 1]}`);
  }
  return { status, headers, body };
}

for (const behindGateway of [true, false]) {
  test(behindGateway ? 'behind the gateway' : 'as a plain web server', async (t) => {
    t.mock.method(console, 'error', () => {}); // Express prints the errors that it answers
    const dir = project(t, { 'file.txt': '0123456789', 'views/page.shout': 'GREETING, WHO!' });
    for (const [name, [handler, request = {}]] of Object.entries({ ...REQ, ...RES })) {
      await t.test(name, async (t) => {
        const wrapped = await serve(t, (req, res) => handler(req, res, dir), { behindGateway });
        const plain = await plainExpress(t, (req, res) => handler(req, res, dir), behindGateway);
        const id = { 'x-epsilon-request-id': 'members-1' };
        const options = { ...request, headers: { ...id, ...request.headers } };
        const expected = comparable(await call(plain, options));
        const actual = comparable(await call(wrapped.socket, options));
        actual.headers = actual.headers.filter((line) => line !== 'x-epsilon-request-id: members-1');
        assert.deepEqual(actual, expected);
        assert.notEqual(actual.status, 500, actual.body);
        assert.deepEqual(wrapped.logged, []);
      });
    }
  });
}

test('all members of Express are covered', async (t) => {
  const names = (object) => [...Object.keys(object), ...Object.keys(Object.getPrototypeOf(object))];
  const seen = await serve(t, (req, res) => {
    const missing = [...names(express.request)].filter((name) => !(name in req));
    const lacking = [...names(express.response)].filter((name) => !(name in res));
    res.json([...missing, ...lacking]);
  });
  assert.equal((await seen.call()).body, '[]');
});
