'use strict';
// One Node process of `epsilon dev`, where the platform has a container. It waits, warm, for one order on its
// standard input and then is what the order says: the wrapper (`./main.js`) or the inspector (`./inspect.js`).
//
//   {"run":"./main.js","arguments":[],"env":{"EPSILON_SOCKETS":"…"},"inspect":9229}
//
// Standard input stays open as long as `epsilon dev` lives. Its end, also by a kill -9, ends this process and all
// that it started, whatever user code is doing: a thread of its own watches. Lies beside the wrapper's files.

const { Readable } = require('node:stream');
const { Worker } = require('node:worker_threads');

/** How often it is looked whether the process before this one has let go of the inspector's port. */
const PORT_AGAIN_MS = 100;

const WATCH = `
  const net = require('node:net');
  const { parentPort } = require('node:worker_threads');
  const input = new net.Socket({ fd: 0, readable: true, writable: false });
  let text = '';
  input.setEncoding('utf8');
  input.on('data', (piece) => {
    text += piece;
    const end = text.indexOf('\\n');
    if (end >= 0) parentPort.postMessage(JSON.parse(text.slice(0, end)));
  });
  input.on('error', () => {});
  input.on('close', () => process.kill(-process.pid, 'SIGKILL'));
`;

let waits = true;
const watch = new Worker(WATCH, { eval: true });
watch.once('message', ({ run, arguments: args, env, inspect }) => {
  waits = false;
  watch.unref();
  Object.assign(process.env, env);
  process.argv.push(...args);
  if (inspect) openInspector(inspect);
  require(run);
});

// As on the platform, nothing is to be read there; and what the thread reads is not user code's.
Object.defineProperty(process, 'stdin', { configurable: true, get: () => Readable.from([]) });

// Much of what the first start would otherwise load.
const { warm } = require('./lib/warm.js');
warm({ get state() { return waits ? 'waiting' : 'taken'; } });

/** The old process of the function has the port until its last call is over. */
function openInspector(port) {
  const probe = require('node:net').createServer();
  probe.once('error', () => setTimeout(openInspector, PORT_AGAIN_MS, port).unref());
  probe.listen(port, '127.0.0.1', () => probe.close(() => require('node:inspector').open(port, '127.0.0.1')));
}
