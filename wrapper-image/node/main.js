'use strict';
// The process inside an instance: boots, loads one function, serves its calls, shuts down.
//
// Nothing is decided here. With `EPSILON_SOCKETS=DIR` an agent controls it: `DIR/control.sock` at
// once, `DIR/calls.sock` after `POST /init`. Without, it is a plain web server: the function comes
// from `EPSILON_FUNCTION` and is served on TCP `$PORT`. `../README.md` is the contract.

const path = require('node:path');
const { Instance } = require('./lib/instance.js');
const { captureOutput } = require('./lib/capture.js');
const { Log } = require('./lib/log.js');
const { watchProcess } = require('./lib/faults.js');

/** Exit code for wrong usage: nothing to run. */
const EXIT_USAGE = 2;

const { EPSILON_SOCKETS: sockets, EPSILON_FUNCTION: spec, PORT: port = '8080' } = process.env;
// User code and its child processes must not act as a wrapper.
delete process.env.EPSILON_SOCKETS;
delete process.env.EPSILON_FUNCTION;

const log = new Log(sockets ? 'records' : 'text');
const capture = captureOutput(log);
const instance = new Instance({ log, capture, behindGateway: Boolean(sockets) });
const faults = watchProcess(instance, capture);

if (sockets) serveAgent(sockets);
else servePlainly();

function serveAgent(folder) {
  const { listenControl } = require('./lib/control.js');
  const { warm } = require('./lib/warm.js');
  const start = (request) => instance.start(request, { path: path.join(folder, 'calls.sock') });
  const warmed = Promise.withResolvers();
  listenControl(path.join(folder, 'control.sock'), instance, start, warmed.promise)
    .then((server) => {
      instance.control = server;
      return warm(instance, folder);
    })
    .then(warmed.resolve, faults.stop);
}

async function servePlainly() {
  if (!spec) {
    log.write('error', 'Nothing to run: set EPSILON_SOCKETS, or EPSILON_FUNCTION and PORT.');
    return faults.exit(EXIT_USAGE);
  }
  try {
    const { signature } = await instance.start(JSON.parse(spec), { port: Number(port) });
    log.write('info', `\`${instance.name}\` (${signature}) listens on port ${instance.address().port}.`);
  } catch (err) {
    faults.stop(err);
  }
}
