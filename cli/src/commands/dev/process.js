'use strict';
// One Node process of `epsilon dev`; the platform uses a container instead. It waits, preloaded, for
// one command on standard input and then runs it: the wrapper (`./main.js`) or the inspector
// (`./inspect.js`).
//
//   {"run":"./main.js","arguments":[],"env":{"EPSILON_SOCKETS":"…"},"inspect":9229}
//
// Standard input stays open as long as `epsilon dev` runs. When it closes, also after a kill -9, a
// separate thread ends this process and all its child processes, even if user code blocks the main
// thread. The file is placed beside the wrapper's files.

const { Readable } = require('node:stream');
const { Worker } = require('node:worker_threads');

/** Interval of the check whether the previous process has released the inspector port. */
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

// As on the platform, user code reads nothing from standard input, and must not read the thread's data.
Object.defineProperty(process, 'stdin', { configurable: true, get: () => Readable.from([]) });

// Preloads most modules that the first start needs.
const { warm } = require('./lib/warm.js');
warm({ get state() { return waits ? 'waiting' : 'taken'; } });

/** The previous process of the function holds the port until its last call has ended. */
function openInspector(port) {
  const probe = require('node:net').createServer();
  probe.once('error', () => setTimeout(openInspector, PORT_AGAIN_MS, port).unref());
  probe.listen(port, '127.0.0.1', () => probe.close(() => require('node:inspector').open(port, '127.0.0.1')));
}
