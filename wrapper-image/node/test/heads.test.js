'use strict';
// Heads of responses: wrong statements are corrected or cut, in every signature; many fields pass, and
// so do early hints.

const assert = require('node:assert/strict');
const http = require('node:http');
const { test } = require('node:test');
const zlib = require('node:zlib');
const express = require('express');
const { until } = require('./support/http.js');
const { serve } = require('./support/serve.js');

/** Two calls over one connection: the second would read excess bytes of the first. */
async function twice(f, options = {}) {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const ask = () => new Promise((resolve, reject) => {
    http.request({ socketPath: f.socket, agent, ...options }, async (res) => {
      let text = '';
      try {
        for await (const chunk of res) text += chunk;
      } catch (err) {
        return reject(err);
      }
      resolve([res.statusCode, res.headers['content-length'] ?? res.headers['transfer-encoding'], text]);
    }).on('error', reject).end();
  });
  try {
    return [await ask(), await ask()];
  } finally {
    agent.destroy();
  }
}

const length = (n) => ({ 'content-length': String(n) });
const lambda = (result) => ({ func: async () => result, config: { signature: 'lambda' } });
const stream = (text) => new ReadableStream({ async start(c) {
  c.enqueue(Buffer.from(text.slice(0, 2)));
  await new Promise((resolve) => setTimeout(resolve, 5));
  c.enqueue(Buffer.from(text.slice(2)));
  c.close();
} });
const app = (handler) => express().get('/', handler);

for (const stated of [3, 9]) {
  const sent = [200, '5', 'abcde'];
  const chunked = [200, 'chunked', 'abcde'];
  for (const [what, exported, expected] of [
    ['setHeader and end', (req, res) => res.setHeader('content-length', stated).end('abcde'), sent],
    ['writeHead and end', (req, res) => res.writeHead(200, length(stated)).end('abcde'), sent],
    ['writeHead of a list', (req, res) => res.writeHead(200, ['Content-Length', stated]).end('abcde'), sent],
    ['writeHead with bytes', (req, res) => res.writeHead(200, length(stated)).end(Buffer.from('abcde')), sent],
    ['an application', app((req, res) => res.writeHead(200, length(stated)).end('abcde')), sent],
    ['nothing at all', (req, res) => res.writeHead(200, length(stated)).end(), [200, '0', '']],
    ['nothing at all, by setHeader', (req, res) => res.setHeader('content-length', stated).end(), [200, '0', '']],
    ['a chunked answer', (req, res) => { res.writeHead(200, { ...length(stated), 'transfer-encoding': 'chunked' }); res.end('abcde'); }, chunked],
    ['a chunked answer, by setHeader', (req, res) => { res.setHeader('content-length', stated).setHeader('transfer-encoding', 'chunked').end('abcde'); }, chunked],
    ['Lambda', lambda({ statusCode: 200, headers: { 'Content-Length': stated }, body: 'abcde' }), sent],
    ['Lambda, by lists', lambda({ statusCode: 200, multiValueHeaders: { 'content-length': [String(stated)], 'transfer-encoding': ['chunked'] }, body: 'YWJjZGU=', isBase64Encoded: true }), sent],
    ['fetch', { fetch: () => new Response('abcde', { headers: length(stated) }) }, sent],
    ['fetch that streams', { fetch: () => new Response(stream('abcde'), { headers: length(stated) }) }, chunked],
  ]) {
    test(`a content-length of ${stated} for what is not ${stated} long: ${what}`, async (t) => {
      const f = await serve(t, exported);
      assert.deepEqual(await twice(f), [expected, expected]);
      assert.deepEqual(f.logged, []);
    });
  }
}

for (const [what, exported, message] of [
  ['more', (req, res) => { res.writeHead(200, length(3)); res.write('ab'); setImmediate(() => res.end('cde')); }, /more bytes than the 3/],
  ['more, by write', (req, res) => { res.writeHead(200, length(3)); res.write('ab'); setImmediate(() => { res.write('cde'); res.end(); }); }, /more bytes than the 3/],
  ['less', (req, res) => { res.writeHead(200, length(9)); res.write('ab'); setImmediate(() => res.end('cde')); }, /4 bytes before the 9/],
  ['less, by an application that pipes', app((req, res) => { res.set(length(9)); require('node:stream').Readable.from(['ab', 'cde']).pipe(res); }), /4 bytes before the 9/],
]) {
  test(`a stream that sends ${what} than its head states is cut`, async (t) => {
    const f = await serve(t, exported);
    await assert.rejects(twice(f), { code: 'ECONNRESET' });
    await until(() => f.instance.active === 0, 'the end of the call');
    assert.equal(f.logged.length, 1);
    assert.equal(f.logged[0].level, 'error');
    assert.match(f.logged[0].message, message);
  });
}

test('a correct length stays, also for HEAD, 304 and files', async (t) => {
  const f = await serve(t, (req, res) => {
    if (req.path === '/file') return res.sendFile(__filename);
    if (req.path === '/304') return res.writeHead(304, length(7)).end();
    if (req.path === '/stream') {
      res.writeHead(200, length(5)).write('ab');
      return void setImmediate(() => res.end('cde'));
    }
    return res.writeHead(200, length(5)).end(req.method === 'HEAD' ? undefined : 'abcde');
  });
  const right = [200, '5', 'abcde'];
  assert.deepEqual(await twice(f), [right, right]);
  assert.deepEqual(await twice(f, { path: '/stream' }), [right, right]);
  assert.deepEqual((await twice(f, { method: 'HEAD' }))[1], [200, '5', '']);
  assert.deepEqual((await twice(f, { path: '/304' }))[1], [304, '7', '']);
  const text = require('node:fs').readFileSync(__filename, 'utf8');
  assert.deepEqual((await twice(f, { path: '/file' }))[1], [200, String(Buffer.byteLength(text)), text]);
  assert.deepEqual(f.logged, []);
});

test('middleware that wraps write and end, as compression does, still works', async (t) => {
  const wrapping = (req, res, next) => {
    const { write, end } = res;
    const gzip = zlib.createGzip();
    res.write = (chunk) => gzip.write(chunk);
    res.end = (chunk) => gzip.end(chunk);
    res.set('content-encoding', 'gzip').removeHeader('content-length');
    gzip.on('data', (chunk) => write.call(res, chunk)).on('end', () => end.call(res));
    next();
  };
  const f = await serve(t, express().use(wrapping).get('/', (req, res) => { res.write('abc'); res.end('de'); }));
  assert.equal(String(zlib.gunzipSync((await f.call()).bytes)), 'abcde');
});

/** An upstream that answers `/CODING/STATUS` in a coding. */
async function upstream(t) {
  const pack = { gzip: zlib.gzipSync, deflate: zlib.deflateSync, br: zlib.brotliCompressSync, zstd: zlib.zstdCompressSync };
  const server = http.createServer((req, res) => {
    const [, coding, kind] = req.url.split('/');
    const plain = kind === 'nested' ? zlib.gzipSync('inner') : Buffer.from(JSON.stringify({ hello: 'x'.repeat(500) }));
    const body = pack[coding]?.(plain) ?? plain;
    if (pack[coding]) res.setHeader('content-encoding', coding);
    if (kind === 'chunked') return res.end(body, () => {});
    res.writeHead(200, { 'content-type': 'application/json', 'content-length': body.length });
    res.end(body);
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return `http://127.0.0.1:${server.address().port}`;
}

const plain = JSON.stringify({ hello: 'x'.repeat(500) });
for (const [what, hand] of [
  ['handed on', (response) => response],
  ['made anew of body and headers', (response) => new Response(response.body, response)],
  ['made anew of the text', async (response) => new Response(await response.text(), { headers: response.headers })],
  ['cloned', (response) => response.clone()],
]) {
  test(`an upstream's answer that is ${what} loses outdated coding and length`, async (t) => {
    const url = await upstream(t);
    const f = await serve(t, { fetch: async (request) => hand(await fetch(url + new URL(request.url).pathname)) });
    for (const coding of ['none', 'gzip', 'deflate', 'br', 'zstd']) {
      const answer = await f.call({ path: `/${coding}/` });
      assert.deepEqual([answer.status, answer.headers['content-encoding'], answer.body], [200, undefined, plain], coding);
    }
    assert.deepEqual(f.logged, []);
  });
}

test('a compressed file in a compressed response is decoded once', async (t) => {
  const url = await upstream(t);
  const f = await serve(t, { fetch: () => fetch(`${url}/gzip/nested`) });
  const answer = await f.call();
  assert.deepEqual([answer.headers['content-encoding'], String(zlib.gunzipSync(answer.bytes))], [undefined, 'inner']);
});

test('a body compressed by the code stays compressed', async (t) => {
  const packs = { gzip: zlib.gzipSync, deflate: zlib.deflateSync, br: zlib.brotliCompressSync, zstd: zlib.zstdCompressSync };
  const f = await serve(t, { fetch: (request) => {
    const coding = new URL(request.url).pathname.slice(1);
    return new Response(packs[coding](plain), { headers: { 'content-encoding': coding } });
  } });
  for (const [coding, unpack] of Object.entries({ gzip: zlib.gunzipSync, deflate: zlib.inflateSync, br: zlib.brotliDecompressSync, zstd: zlib.zstdDecompressSync })) {
    const answer = await f.call({ path: `/${coding}` });
    assert.deepEqual([answer.headers['content-encoding'], String(unpack(answer.bytes))], [coding, plain]);
  }
});

test('an upstream\'s length is kept when nothing was decoded', async (t) => {
  const url = await upstream(t);
  const f = await serve(t, { fetch: () => fetch(`${url}/none/`) });
  assert.equal((await f.call()).headers['content-length'], String(plain.length));
});

test('more than two thousand fields pass both ways', async (t) => {
  const f = await serve(t, (req, res) => {
    for (let i = 0; i < 3000; i += 1) res.append('set-cookie', `c${i}=1`);
    res.send(String(req.rawHeaders.length / 2 > 3000));
  });
  const headers = Object.fromEntries(Array.from({ length: 3000 }, (_, i) => [`x-h-${i}`, '1']));
  const answer = await f.call({ headers });
  assert.deepEqual([answer.body, answer.headers['set-cookie'].length], ['true', 3000]);
});

test('early hints come before the answer', async (t) => {
  const f = await serve(t, (req, res) => {
    res.writeEarlyHints({ link: '</s.css>; rel=preload; as=style' });
    res.send('page');
  });
  const seen = [];
  const answer = await f.call({ method: 'POST', body: (req) => {
    req.on('information', (info) => seen.push([info.statusCode, info.headers.link]));
    req.end();
  } });
  assert.deepEqual([seen, answer.body], [[[103, '</s.css>; rel=preload; as=style']], 'page']);
});
