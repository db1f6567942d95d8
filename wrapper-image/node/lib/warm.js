'use strict';
// Warm-up while the process waits: performs what the agent and the first caller will do, on
// internal instances, so that V8 has compiled the path from `POST /init` to the response and Node
// has loaded its modules. It uses real sockets beside the real ones, because Node takes another
// code path with anything else.
//
// It runs in small steps, so that the real `/init` can run in between, and stops when that arrives.
// User code sees nothing of it except three of the wrapper's modules in `require.cache`.

const net = require('node:net');
const path = require('node:path');
const { setImmediate: nextTurn } = require('node:timers/promises');
const { listenControl } = require('./control.js');
const { AlreadyStarted, Instance } = require('./instance.js');

/** V8 compiles a function on its first run, and inline caches settle within a few. */
const ROUNDS = 5;
/** One per signature and kind of module. The most frequent comes last, so that its state is the most recent. */
const PIECES = [
  { entry: 'fetch.mjs', export: 'default', signature: 'auto' },
  { entry: 'lambda.js', export: 'handler', signature: 'auto' },
  { entry: 'express.js', export: 'warm', signature: 'express' },
];
const FORWARDED = 'x-forwarded-for: 203.0.113.7\r\nx-forwarded-proto: http\r\nx-forwarded-host: warm\r\nx-forwarded-prefix: /warm\r\n';
const CALLS = [
  request('GET', '/warm?a=1'),
  request('POST', '/warm?a=1', 'application/json', '{"a":1}'),
  request('POST', '/warm', 'application/x-www-form-urlencoded', 'a=1'),
  request('POST', '/warm', 'text/plain', 'a'),
];

/**
 * @param {string} [folder] for the sockets. Without it the modules are only loaded, and the process keeps its working
 * directory (`epsilon dev`, whose processes may become inspectors)
 */
async function warm(instance, folder) {
  const isWaiting = () => instance.state === 'waiting';
  await nextTurn();
  if (isWaiting()) require('express'); // the largest piece: `/init` may come before it
  for (const piece of folder === undefined ? [] : PIECES) {
    await nextTurn();
    if (isWaiting()) await rehearse(piece, folder, isWaiting);
  }
  if (isWaiting()) await import('data:text/javascript,'); // for modules with a top-level await
}

async function rehearse(piece, folder, isWaiting) {
  const silent = new Instance({ log: { write() {}, error() {} }, capture: { flush() {} }, behindGateway: true });
  // Not longer than the real names: paths of sockets have a limit.
  const [control, calls] = ['warm1.sock', 'warm2.sock'].map((name) => path.join(folder, name));
  const start = async (spec) => {
    // From here to the change of directory nothing can run in between, and the real start changes it again.
    if (!isWaiting()) throw new AlreadyStarted('the real one has begun');
    return silent.start(spec, { path: calls });
  };
  const server = await listenControl(control, silent, start, null);
  const agent = new Client(control);
  const spec = { function: 'warm', root: path.join(__dirname, 'rehearsal'), timeout_ms: 1000, env: {}, ...piece };
  await agent.ask(request('POST', '/init', 'application/json', JSON.stringify(spec)));
  const watcher = new Client(control);
  await watcher.ask(request('GET', '/unsettled', undefined, '', 'Connection: Upgrade\r\nUpgrade: unsettled\r\n'));
  if (silent.state === 'ready') {
    const caller = new Client(calls);
    for (let sent = 0; sent < ROUNDS * CALLS.length && isWaiting(); sent += 1) {
      await caller.ask(CALLS[sent % CALLS.length]);
      await nextTurn();
    }
    caller.close();
  }
  watcher.close();
  agent.close();
  server.close();
  await silent.drain();
}

function request(method, target, type, body = '', more = FORWARDED) {
  const about = type ? `Content-Type: ${type}\r\nContent-Length: ${Buffer.byteLength(body)}\r\n` : '';
  return `${method} ${target} HTTP/1.1\r\nHost: warm\r\nx-epsilon-request-id: warm-warm\r\n`
    + `x-epsilon-deadline-ms: 1000\r\n${more}${about}\r\n${body}`;
}

/** Sends requests one after the other over one connection. The responses are ignored. */
class Client {
  #socket;
  #answered = null;

  constructor(at) {
    this.#socket = net.connect(at);
    this.#socket.on('error', () => {}); // `close` follows
    for (const event of ['data', 'close']) this.#socket.on(event, () => this.#answered?.());
  }

  ask(text) {
    this.#socket.write(text);
    return new Promise((resolve) => (this.#answered = resolve));
  }

  close() {
    this.#socket.destroy();
  }
}

module.exports = { warm };
