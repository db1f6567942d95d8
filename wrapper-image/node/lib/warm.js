'use strict';
// Does while waiting what the first start and the first call would otherwise do: loads the adapters and
// Express, and sends a few calls through them so that V8 has compiled the way from parser to answer. In
// small steps, so that `/init` gets in between, and ends when it does. No socket is involved, and a
// function can see nothing of it.

const { duplexPair } = require('node:stream');
const { setImmediate: nextTurn } = require('node:timers/promises');
const { callServer } = require('./server.js');
const { BODY_LIMIT_BYTES } = require('./spec.js');

/** V8 compiles a function on its first run, and inline caches settle within a few. */
const ROUNDS = 10;
const HEAD = 'Host: warm\r\nx-epsilon-request-id: warm-warm\r\nx-epsilon-deadline-ms: 1000\r\n';
const REQUESTS = [
  `GET /?a=1 HTTP/1.1\r\n${HEAD}\r\n`,
  `POST / HTTP/1.1\r\n${HEAD}Content-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a":1}`,
];

async function warm(instance) {
  const isWaiting = () => instance.state === 'waiting';
  await nextTurn();
  if (isWaiting()) require('express');
  await nextTurn();
  if (isWaiting()) await import('data:text/javascript,'); // Node's loader of ES modules
  if (isWaiting()) await sendCalls('express', (req, res) => res.json(req.body ?? req.query), isWaiting);
  if (isWaiting()) await sendCalls('lambda', async () => ({ statusCode: 200, body: '' }), isWaiting);
}

async function sendCalls(signature, func, isWaiting) {
  const silent = {
    name: 'warm', active: 0, behindGateway: true, timeoutMs: 1000,
    log: { write() {}, error() {} }, callEnded() {},
  };
  const spec = { root: process.cwd(), bodyLimit: BODY_LIMIT_BYTES, function: 'warm' };
  const server = callServer(silent, spec, { func, signature, parseBody: true }, { onSocket: true });
  const [client, connection] = duplexPair();
  server.emit('connection', connection);
  client.on('error', () => {});
  for (let sent = 0; sent < ROUNDS * REQUESTS.length && isWaiting(); sent += 1) {
    client.write(REQUESTS[sent % REQUESTS.length]);
    await new Promise((resolve) => client.once('data', resolve));
    await nextTurn();
  }
  client.destroy();
  connection.destroy();
}

module.exports = { warm };
