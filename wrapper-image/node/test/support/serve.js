'use strict';
// The call path inside the test's own process: a function behind `callServer`, and what it logged.

const path = require('node:path');
const { functionsOf, signatureOf } = require('../../lib/exports.js');
const { callServer, listen } = require('../../lib/server.js');
const { Unsettled } = require('../../lib/unsettled.js');
const { call } = require('./http.js');
const { folder } = require('./process.js');

async function serve(t, exported, { signature, event, bodyLimit = 1e6, behindGateway = true, root = process.cwd() } = {}) {
  const target = functionsOf({ f: exported }).get('f');
  target.signature = signature ?? signatureOf('f', target);
  const logged = [];
  const instance = {
    name: 'f', calls: new Set(), behindGateway, timeoutMs: 5000, logged, unsettled: new Unsettled(),
    log: {
      write: (level, message, call) => logged.push({ level, message, id: call?.id }),
      error: (headline, err, call) => logged.push({ level: 'error', message: `${headline} ${err?.message}`, id: call?.id }),
    },
    get active() {
      return this.calls.size;
    },
    callEnded(call) {
      this.calls.delete(call);
    },
  };
  const server = callServer(instance, { function: 'f', root, bodyLimit, event }, target, { onSocket: true });
  const socket = path.join(folder(t), 'calls.sock');
  await listen(server, { path: socket });
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return { instance, logged, socket, call: (options) => call(socket, options) };
}

module.exports = { serve };
