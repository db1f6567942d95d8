'use strict';
// The agent's side of `/unsettled`: which calls a wrapper reports.

const assert = require('node:assert/strict');
const net = require('node:net');
const path = require('node:path');
const { until } = require('./http.js');

/** Connects as the agent does. @returns the ids reported so far */
async function watch(t, f) {
  const reported = [];
  const socket = net.connect(path.join(f.sockets, 'control.sock'));
  t.after(() => socket.destroy());
  socket.write('GET /unsettled HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: unsettled\r\n\r\n');
  let text = '';
  socket.on('data', (bytes) => {
    text += bytes;
    const [head, lines = ''] = text.split('\r\n\r\n');
    reported.head = head;
    reported.splice(0, Infinity, ...lines.split('\n').slice(0, -1));
  });
  await until(() => reported.head, 'the answer to the handshake');
  assert.match(reported.head, /^HTTP\/1\.1 101 /);
  return reported;
}

/** Calls with an id; returns the ids that were reported when the last byte arrived. */
async function reportedBy(f, reported, id, options = {}) {
  const answer = await f.call({ ...options, headers: { 'x-epsilon-request-id': id, ...options.headers } });
  await new Promise(setImmediate); // both sockets have something to read; either may be read first
  return { answer, reported: [...reported] };
}

module.exports = { watch, reportedBy };
