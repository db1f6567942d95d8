'use strict';
// The agent's own socket: `GET /health`, `GET /warm`, `POST /init` and `GET /unsettled`. It shares nothing with the calls'
// listener but the instance, so no byte of a caller can come here.

const fs = require('node:fs');
const http = require('node:http');
const { AlreadyStarted, LoadFailed } = require('./instance.js');
const { InvalidSpec } = require('./spec.js');
const { describe, withoutOurs } = require('./log.js');
const { listen } = require('./server.js');

/** Size limit of a spec with its environment, which alone may be about 100 KiB. */
const INIT_MAX_BYTES = 1024 * 1024;

/** `/init` came before the code was mounted, or the mount does not reach this container. */
class NotMounted extends Error {}

/**
 * Listens at `path`.
 *
 * @param {(request: object) => Promise<object>} start loads the function; resolves to what `/init` answers
 * @param {Promise<void>} warmed settles when the warm-up has finished
 */
async function listenControl(path, instance, start, warmed) {
  const server = http.createServer({ keepAliveTimeout: 0, requestTimeout: 0, headersTimeout: 0 });
  server.on('request', async (req, res) => {
    const [status, body] = await route(req, instance, start, warmed);
    res.writeHead(status, { 'content-type': 'application/json' });
    res.end(JSON.stringify(body));
  });
  server.on('upgrade', (req, socket) => {
    if (`${req.method} ${req.url} ${req.headers.upgrade}` === 'GET /unsettled unsettled') instance.unsettled.watch(socket);
    else socket.end('HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n');
  });
  // Only the listener keeps the process alive, until it drains (`faults.js`); connections do not.
  server.on('connection', (socket) => socket.unref());
  await listen(server, { path });
  return server;
}

async function route(req, instance, start, warmed) {
  switch (`${req.method} ${req.url}`) {
    case 'GET /health':
      return [200, { data: { state: instance.state, active: instance.active, calls: Array.from(instance.calls, ({ id }) => id) } }];
    case 'GET /warm':
      await warmed;
      if (instance.state === 'waiting') return [200, { data: { state: 'waiting' } }];
      return [409, failure('ALREADY_STARTED', `this instance is ${instance.state}`)];
    case 'POST /init':
      return init(req, instance, start);
    default:
      return [404, failure('NOT_FOUND', `nothing answers \`${req.method} ${req.url}\``)];
  }
}

async function init(req, instance, start) {
  try {
    const request = JSON.parse(await bodyOf(req));
    if (instance.state === 'waiting' && isEmptyFolder(request?.root)) {
      throw new NotMounted(`\`${request.root}\` is empty`);
    }
    return [200, { data: await start(request) }];
  } catch (err) {
    if (err instanceof AlreadyStarted) return [409, failure('ALREADY_STARTED', err.message)];
    if (err instanceof NotMounted) return [409, failure('NOT_MOUNTED', err.message)];
    if (!(err instanceof LoadFailed)) return [400, failure('BAD_REQUEST', err.message)];
    const { cause } = err;
    instance.log.error(`${err.message}.`, cause);
    return [422, failure('FUNCTION_INIT_FAILED', withoutOurs(cause?.message ?? String(cause)), describe(cause))];
  }
}

/** A function's folder is never empty. Loading reports any other problem. */
function isEmptyFolder(root) {
  try {
    const folder = fs.opendirSync(root);
    const isEmpty = folder.readSync() === null;
    folder.closeSync();
    return isEmpty;
  } catch {
    return false;
  }
}

function failure(code, message, stack) {
  return { error: { code, message, stack } };
}

/** Uses events: a stream iterator costs more than the rest of a small request. */
function bodyOf(req) {
  return new Promise((resolve, reject) => {
    const chunks = [];
    let size = 0;
    req.on('data', (chunk) => {
      size += chunk.length;
      if (size > INIT_MAX_BYTES) {
        req.resume().removeAllListeners('data');
        reject(new InvalidSpec(`the body is larger than ${INIT_MAX_BYTES} bytes`));
      }
      chunks.push(chunk);
    });
    req.on('end', () => resolve(Buffer.concat(chunks).toString()));
    req.on('error', reject);
  });
}

module.exports = { listenControl };
