'use strict';
// `fetch(request, env, ctx)` of the web platform: a `Request` in, a `Response` out, both streamed.

const { Readable } = require('node:stream');
const { hasBody } = require('../body.js');

function adapt(instance, spec, { func }) {
  const handle = async (call) => {
    const abort = new AbortController();
    call.res.once('close', () => {
      if (!call.res.writableFinished) abort.abort();
    });
    const context = {
      waitUntil: (promise) => call.waitUntil(promise),
      passThroughOnException() {}, // no origin behind us to pass to
    };
    const request = requestOf(call.req, abort.signal, instance.behindGateway);
    await send(call.res, await func(request, process.env, context));
  };
  return { handle };
}

function requestOf(req, signal, behindGateway) {
  const scheme = (behindGateway && req.headers['x-forwarded-proto']) || 'http';
  const host = (behindGateway && req.headers['x-forwarded-host']) || req.headers.host || 'localhost';
  const headers = new Headers();
  for (let i = 0; i < req.rawHeaders.length; i += 2) headers.append(req.rawHeaders[i], req.rawHeaders[i + 1]);
  const { method } = req;
  const streams = method !== 'GET' && method !== 'HEAD' && hasBody(req);
  return new Request(`${scheme}://${host}${req.url}`, {
    method,
    headers,
    signal,
    ...(streams && { body: Readable.toWeb(req), duplex: 'half' }),
  });
}

async function send(res, response) {
  // By shape and not by class: a project may bring its own `Response`.
  if (typeof response?.status !== 'number' || typeof response.headers?.entries !== 'function') {
    throw new TypeError('fetch() must return a Response');
  }
  if (res.destroyed) return response.body?.cancel();
  res.statusCode = response.status;
  if (response.statusText) res.statusMessage = response.statusText;
  for (const [name, value] of response.headers) if (name !== 'set-cookie') res.setHeader(name, value);
  const cookies = response.headers.getSetCookie?.() ?? [];
  if (cookies.length > 0) res.setHeader('set-cookie', cookies);
  if (response.body === null || response.body === undefined) return res.end();
  await copy(response.body, res);
}

/** Bytes as they come, at the pace of the reader; a small whole body leaves in one packet with its head. */
async function copy(body, res) {
  const reader = body.getReader();
  res.once('close', () => reader.cancel().catch(() => {}));
  const { socket } = res;
  socket.cork(); // not `res.cork()`: in Node 24 its `end()` puts the last chunk's mark before corked chunks
  setImmediate(() => socket.uncork());
  res.flushHeaders();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (res.destroyed) return;
    if (!res.write(value)) await new Promise((resolve) => {
      res.once('drain', resolve);
      res.once('close', resolve);
    });
  }
  res.end();
}

module.exports = { adapt };
