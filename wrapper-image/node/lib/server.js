'use strict';
// The listener for calls: creates a `Call` for each request and passes it to the function by its
// signature.
//
// No timer here can cut a call: the agent keeps the time limit. The agent also closes idle
// connections first, so that none is closed while a request is on its way.

const fs = require('node:fs');
const http = require('node:http');
const net = require('node:net');
const { Call, emitInCall, ID_HEADER } = require('./call.js');
const { answerFunctionError } = require('./answer.js');
const { showCaller } = require('./caller.js');
const { attach, makeHoldable } = require('./response.js');

/** Path prefix of the function at the gateway; absent when it has its own host name. */
const PREFIX_HEADER = 'x-forwarded-prefix';

/** Must accept every head that the gateway accepts; its limit is about 400 KiB. */
const HEAD_MAX_BYTES = 512 * 1024;
/** On TCP, longer than the idle time of the usual load balancers (60 s), so that they close first. */
const TCP_IDLE_MS = 75_000;
/** On TCP, how long a client may take to send a head. */
const TCP_HEAD_MS = 60_000;

/**
 * @param {{ onSocket: boolean }} where the only peer of a unix socket is the agent; TCP accepts any client
 * @returns {http.Server} that does not listen yet
 */
function callServer(instance, spec, target, { onSocket }) {
  const { handle, IncomingMessage, ServerResponse } = adapterOf(instance, spec, target);

  const server = http.createServer({
    IncomingMessage,
    ServerResponse,
    maxHeaderSize: HEAD_MAX_BYTES,
    requestTimeout: 0,
    headersTimeout: onSocket ? 0 : TCP_HEAD_MS,
    keepAliveTimeout: onSocket ? 0 : TCP_IDLE_MS,
  });

  // Heads are limited by size, not by the number of fields.
  server.maxHeadersCount = 0;

  server.on('connection', (socket) => {
    if (onSocket) makeHoldable(socket);
    if (onSocket && instance.behindGateway) showCaller(socket);
  });

  server.on('request', (req, res) => {
    const call = callOf(instance, req, res);
    attach(res, call);
    req.emit = res.emit = emitInCall(call);
    res.on('error', (err) => call.fail(err));
    res.on('close', () => call.release());
    if (!instance.behindGateway) res.setHeader(ID_HEADER, call.id);
    call.begin(handle);
  });

  if (target.upgrade) {
    server.on('upgrade', (req, socket, head) => upgrade(instance, target.upgrade, req, socket, head));
  }

  return server;
}

function callOf(instance, req, res) {
  const call = new Call(instance, req, res);
  if (instance.behindGateway) {
    call.prefix = req.headers[PREFIX_HEADER] ?? '';
    req.socket.forwarded = req.headers;
  }
  return call;
}

function adapterOf(instance, spec, target) {
  switch (target.signature) {
    case 'lambda':
      return require('./signature/lambda.js').adapt(instance, spec, target);
    case 'fetch':
      return require('./signature/fetch.js').adapt(instance, spec, target);
    default: {
      const { adapt, adaptApplication } = require('./signature/express.js');
      return target.app ? adaptApplication(instance, target) : adapt(instance, spec, target);
    }
  }
}

/** Passes a handshake to the export's `upgrade(req, socket, head)`; the call lasts as long as the socket. */
function upgrade(instance, handler, req, socket, head) {
  const call = callOf(instance, req, null);
  tellBeforeEnd(socket, call);
  const sentBefore = socket.bytesWritten;
  socket.emit = emitInCall(call);
  socket.on('error', () => socket.destroy());
  socket.on('end', () => socket.end()); // the caller has disconnected: a half-open socket would keep its call forever
  socket.on('close', () => call.release());
  call.refuseUpgrade = () => {
    if (socket.bytesWritten !== sentBefore) return socket.destroy();
    const res = new http.ServerResponse(req);
    res.shouldKeepAlive = false;
    res.assignSocket(socket);
    res.on('finish', () => socket.end());
    answerFunctionError(res, call);
  };
  call.begin(() => handler(req, socket, head));
}

/** The end of the connection is the last byte of an upgraded call; a call that continues is reported before. */
function tellBeforeEnd(socket, call) {
  for (const method of ['end', 'destroy']) {
    socket[method] = function (...args) {
      call.tellIfPending();
      return net.Socket.prototype[method].apply(this, args);
    };
  }
}

/** Listens; a unix socket replaces a stale one and is writable for the agent's user. */
async function listen(server, where) {
  if (where.path !== undefined) fs.rmSync(where.path, { force: true });
  const { promise, resolve, reject } = Promise.withResolvers();
  server.once('error', reject);
  server.listen(where, () => {
    server.off('error', reject);
    // The folder restricts access: only the agent and this container reach it.
    if (where.path !== undefined) fs.chmodSync(where.path, 0o666);
    resolve();
  });
  return promise;
}

module.exports = { callServer, listen };
