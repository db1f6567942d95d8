'use strict';
// The caller's address and scheme, as code finds them on a connection. The peer of a unix socket
// has no address, so the properties that plain code, Express and Koa read from a socket
// (`remoteAddress`, `encrypted`) are derived from the gateway's headers on the current request.
// Used by `server.js`.

const net = require('node:net');

const PROPERTIES = {
  /** Headers of the current request on this connection; set for each request. */
  forwarded: { writable: true, value: {} },
  /** The left-most entry is the caller: the gateway keeps only trusted entries. */
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
