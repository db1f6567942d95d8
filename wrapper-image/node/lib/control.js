'use strict';
// The agent's own socket: `POST /init` and `GET /health`. It shares nothing with the calls' listener but
// the instance, so no byte of a caller can come here.

const http = require('node:http');
const { AlreadyStarted, LoadFailed } = require('./instance.js');
const { InvalidSpec } = require('./spec.js');
const { describe, withoutOurs } = require('./log.js');
const { listen } = require('./server.js');

/** A spec with its environment; an environment alone may be some 100 KiB. */
const INIT_MAX_BYTES = 1024 * 1024;

/** Listens at `path`. `start` loads the function and resolves to what `/init` answers. */
async function listenControl(path, instance, start) {
  const server = http.createServer({ keepAliveTimeout: 0, requestTimeout: 0, headersTimeout: 0 });
  server.on('request', async (req, res) => {
    const [status, body] = await route(req, instance, start);
    res.writeHead(status, { 'content-type': 'application/json' });
    res.end(JSON.stringify(body));
  });
  await listen(server, { path });
  return server;
}

async function route(req, instance, start) {
  const what = `${req.method} ${req.url}`;
  if (what === 'GET /health') return [200, { data: { state: instance.state, active: instance.active } }];
  if (what !== 'POST /init') return [404, failure('NOT_FOUND', `nothing answers \`${what}\``)];
  try {
    return [200, { data: await start(JSON.parse(await bodyOf(req))) }];
  } catch (err) {
    if (err instanceof AlreadyStarted) return [409, failure('ALREADY_STARTED', err.message)];
    if (!(err instanceof LoadFailed)) return [400, failure('BAD_REQUEST', err.message)];
    const { cause } = err;
    instance.log.error(`${err.message}.`, cause);
    return [422, failure('FUNCTION_INIT_FAILED', withoutOurs(cause?.message ?? String(cause)), describe(cause))];
  }
}

function failure(code, message, stack) {
  return { error: { code, message, stack } };
}

async function bodyOf(req) {
  const chunks = [];
  let size = 0;
  for await (const chunk of req) {
    size += chunk.length;
    if (size > INIT_MAX_BYTES) throw new InvalidSpec(`the body is larger than ${INIT_MAX_BYTES} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString();
}

module.exports = { listenControl };
