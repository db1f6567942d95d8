'use strict';
// Who calls, as code finds it on a connection. The peer of a unix socket has no address; what plain code, Express and
// Koa read of a socket (`remoteAddress`, `encrypted`) is told from what the gateway says of the request that is on it.
// Used by `server.js`.

const net = require('node:net');

const PROPERTIES = {
  /** The headers of the request that is on this connection; set with each. */
  forwarded: { writable: true, value: {} },
  /** The left-most entry is the caller: the gateway keeps only what it trusts. */
  remoteAddress: {
    configurable: true, enumerable: true,
    get() { return this.forwarded['x-forwarded-for']?.split(',', 1)[0].trim(); },
  },
  remoteFamily: {
    configurable: true, enumerable: true,
    get() { return FAMILIES[net.isIP(this.remoteAddress ?? '')]; },
  },
  encrypted: {
    configurable: true, enumerable: true,
    get() { return this.forwarded['x-forwarded-proto'] === 'https'; },
  },
};
const FAMILIES = { 4: 'IPv4', 6: 'IPv6' };

/** Once for each connection; then `socket.forwarded` is set with each request. */
function showCaller(socket) {
  Object.defineProperties(socket, PROPERTIES);
}

module.exports = { showCaller };
