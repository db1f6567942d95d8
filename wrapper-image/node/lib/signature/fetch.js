'use strict';
// `fetch(request, env, ctx)` of the web platform: takes a `Request`, returns a `Response`, both
// streamed.

const { Readable } = require('node:stream');
const { setImmediate: nextTurn } = require('node:timers/promises');
const { hasBody } = require('../body/kind.js');
const { isDecoded, isFetched, needsLook } = require('./fetch/decoded.js');

/** Headers that concern one connection, such as the one to an upstream; cookies are set separately. */
const OURS = new Set(['set-cookie', 'connection', 'keep-alive', 'transfer-encoding']);

function adapt(instance, spec, { func }) {
  const handle = async (call) => {
    const abort = new AbortController();
    call.res.once('close', () => {
      if (!call.res.writableFinished) abort.abort();
    });
    const context = {
      waitUntil: (promise) => call.waitUntil(promise),
      passThroughOnException() {}, // there is no origin to pass to
    };
    const request = requestOf(call.req, abort.signal, instance.behindGateway);
    const response = await func(request, process.env, context);
    if (!isResponse(response)) throw new TypeError('fetch() must return a Response');
    await send(call.res, response);
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

/** By shape and not by class: a project may bring its own `Response`. */
function isResponse(value) {
  return typeof value?.status === 'number' && typeof value.headers?.entries === 'function';
}

/** Sends a `Response`, for any signature. */
async function send(res, response) {
  if (res.destroyed) return response.body?.cancel();
  res.statusCode = response.status;
  if (response.statusText) res.statusMessage = response.statusText;
  for (const [name, value] of response.headers) if (!OURS.has(name)) res.setHeader(name, value);
  const cookies = response.headers.getSetCookie?.() ?? [];
  if (cookies.length > 0) res.setHeader('set-cookie', cookies);
  if (response.body === null || response.body === undefined) return res.end();
  await copy(response, res);
}

/**
 * Sends bytes as they arrive, at the reader's pace. A body that is complete within this turn, as most that are not streams,
 * leaves in one packet with its head and its length.
 */
async function copy(response, res) {
  const reader = response.body.getReader();
  res.once('close', () => reader.cancel().catch(() => {}));
  const turn = nextTurn(); // resolves to `undefined`, while a read gives an object
  let next = reader.read();
  let first = await Promise.race([next, turn]);
  if (first === undefined && needsLook(response)) first = await next;
  if (first !== undefined && !first.done) next = reader.read();
  const second = first?.done ? first : await Promise.race([next, turn]);
  if (res.destroyed) return;
  const isWhole = first !== undefined && second?.done === true;
  mendHeaders(response, res, first?.value, isWhole);
  if (isWhole) return res.end(first.value);
  if (first === undefined) res.flushHeaders();
  else res.write(first.value);
  for (;;) {
    const { done, value } = await next;
    if (done) break;
    if (res.destroyed) return;
    if (!res.write(value)) await new Promise((resolve) => {
      res.once('drain', resolve);
      res.once('close', resolve);
    });
    next = reader.read();
  }
  res.end();
}

/** Removes headers about a body that has changed since; new ones are set when it is sent. */
function mendHeaders(response, res, bytes, isWhole) {
  if (isDecoded(response, bytes, isWhole)) {
    res.removeHeader('content-encoding');
    res.removeHeader('content-length');
  } else if (!isWhole && !isFetched(response)) {
    res.removeHeader('content-length'); // of a stream made by the code, whose length was not checked
  }
}

module.exports = { adapt, isResponse, send };
