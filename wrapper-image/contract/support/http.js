'use strict';
// A small HTTP client over unix sockets, and waiting for conditions with a limit.

const http = require('node:http');
const { setTimeout: pause } = require('node:timers/promises');

/** Far above the duration of any step; a test that reaches it has failed. */
const LIMIT_MS = 10_000;
/** As the gateway's. */
const HEAD_MAX_BYTES = 512 * 1024;

/** @returns {Promise<{status: number, headers: object, rawHeaders: string[], body: string, bytes: Buffer}>} */
async function call(socketPath, { method = 'GET', path = '/', headers = {}, body } = {}) {
  const res = await head(socketPath, { method, path, headers, body });
  const chunks = [];
  for await (const chunk of res) chunks.push(chunk);
  const bytes = Buffer.concat(chunks);
  return { status: res.statusCode, headers: res.headers, rawHeaders: res.rawHeaders, body: bytes.toString(), bytes };
}

/** The answer as soon as its head is there. `body` may also be a function that gets the open request. */
function head(socketPath, { method = 'GET', path = '/', headers = {}, body }) {
  return new Promise((resolve, reject) => {
    const req = http.request({ socketPath, method, path, headers, agent: false, maxHeaderSize: HEAD_MAX_BYTES });
    req.maxHeadersCount = 0;
    req.setTimeout(LIMIT_MS, () => req.destroy(new Error(`no answer to ${method} ${path}`)));
    req.on('response', resolve);
    req.on('error', reject);
    if (typeof body === 'function') body(req);
    else req.end(body);
  });
}

/** Waits until the condition gives something true, and returns that. */
async function until(condition, what) {
  const end = performance.now() + LIMIT_MS;
  for (;;) {
    const found = await condition();
    if (found) return found;
    if (performance.now() > end) throw new Error(`waited in vain for ${what}`);
    await pause(5);
  }
}

module.exports = { call, head, until };
