'use strict';
// What is done to every response of the calls' listener, whatever its signature and whatever framework writes it: its
// own `writeHead`, `write` and `end`, put before those of its class. Properties of the response itself, because an
// Express application gives it another class.
//
// - A stated `Content-Length` that is not what is sent never reaches the wire as it is: a whole body gets its real
//   length, a stream that leaves it is cut, with a line in the log. Node sends both as they are, and the bytes too many
//   would be the next answer on the connection.
// - A `Location` that is a path stays below the prefix under which the function is called.
// - The end of an answer is held back until it is known whether its handler has settled with it (`call.js`).

const { Duplex } = require('node:stream');

const CALL = Symbol('epsilon.call');
const LEFT = Symbol('epsilon.left');
const HELD = Symbol('epsilon.held');

const LENGTH_LINE = /\r\ncontent-length: [^\r]*/i;
const LOCATION_LINE = /(\r\nlocation: )(\/(?![/\\])[^\r]*)/i;

/** Makes a response this call's. */
function attach(res, call) {
  res[CALL] = call;
  res[LEFT] = undefined; // bytes that are still to come, by its stated length
  res.writeHead = writeHead;
  res.write = write;
  res.end = end;
  res.flushHeaders = flushHeaders;
}

function writeHead(...args) {
  Object.getPrototypeOf(this).writeHead.apply(this, args);
  const { prefix } = this[CALL];
  if (prefix !== '') {
    this._header = this._header.replace(LOCATION_LINE, (line, name, path) => (isBelow(prefix, path) ? line : name + prefix + path));
  }
  // Node keeps here what the head states, or what it made of a whole body.
  if (this._hasBody && typeof this._contentLength === 'number') {
    if (this.chunkedEncoding) this._header = this._header.replace(LENGTH_LINE, '');
    else this[LEFT] = this._contentLength;
  }
  return this;
}

function flushHeaders() {
  if (!this._header) this._implicitHeader();
  // Who reads the head of an answer without a body has all of it.
  if (!this._hasBody) this[CALL].tellIfPending();
  Object.getPrototypeOf(this).flushHeaders.call(this);
}

function isBelow(prefix, path) {
  return path.startsWith(prefix) && (path.length === prefix.length || '/?#'.includes(path[prefix.length]));
}

function write(chunk, encoding, callback) {
  if (!this._header && this.hasHeader('content-length') && sizeOf(chunk, encoding) > 0) this._implicitHeader();
  const isCounted = this[LEFT] !== undefined && !this.writableEnded && !this.destroyed;
  if (isCounted && !account(this, chunk, encoding)) return false;
  // The last of the bytes that were stated is the answer's end, whenever `end` is called.
  if (isCounted && this[LEFT] === 0) return last(this, 'write', chunk, encoding, callback);
  return Object.getPrototypeOf(this).write.call(this, chunk, encoding, callback);
}

/** Takes a chunk off what is to come; false when it is more than was stated: the answer is cut. */
function account(res, chunk, encoding) {
  res[LEFT] -= sizeOf(chunk, encoding);
  if (res[LEFT] >= 0) return true;
  res[CALL].failAnswer(`The answer has more bytes than the ${res._contentLength} of its content-length; it was cut.`);
  return false;
}

function end(chunk, encoding, callback) {
  if (typeof chunk === 'function') [chunk, encoding, callback] = [undefined, undefined, chunk];
  else if (typeof encoding === 'function') [encoding, callback] = [undefined, encoding];
  if (this.writableEnded || this.destroyed) return Object.getPrototypeOf(this).end.call(this, chunk, encoding, callback);
  if (!completes(this, chunk, encoding)) return this;
  return last(this, 'end', chunk, encoding, callback);
}

/** Writes the last bytes of an answer; they wait in the socket as long as the call does not know more. */
function last(res, method, chunk, encoding, callback) {
  const socket = res[CALL].holdsEnd(method === 'end') ? res.socket : null;
  if (socket === null) return Object.getPrototypeOf(res)[method].call(res, chunk, encoding, callback);
  socket[HELD] = true;
  socket.cork();
  try {
    return Object.getPrototypeOf(res)[method].call(res, chunk, encoding, callback);
  } finally {
    res[CALL].held(socket);
  }
}

/** Whether the answer is as long as it says once this chunk is sent; mends what it says while that is possible. */
function completes(res, chunk, encoding) {
  const size = chunk === undefined || chunk === null ? 0 : sizeOf(chunk, encoding);
  if (!res._header) {
    // The whole body is known: its length is what it is. For HEAD and 304 it is another answer's.
    if (hasBody(res) && res.hasHeader('content-length') && Number(res.getHeader('content-length')) !== size) {
      res.setHeader('content-length', size);
    }
    return true;
  }
  if (res[LEFT] === undefined || res[LEFT] === size) return true;
  if (!res._headerSent) {
    res._header = res._header.replace(LENGTH_LINE, `\r\nContent-Length: ${size}`);
    return true;
  }
  if (res[LEFT] < size) return account(res, chunk, encoding);
  res[CALL].failAnswer(`The answer ended ${res[LEFT] - size} bytes before the ${res._contentLength} of its content-length; it was cut.`);
  return false;
}

function hasBody({ req, statusCode }) {
  return req.method !== 'HEAD' && statusCode >= 200 && statusCode !== 204 && statusCode !== 304;
}

/** What cannot be sent at all is the original's to refuse. */
function sizeOf(chunk, encoding) {
  return typeof chunk === 'string' ? Buffer.byteLength(chunk, encoding) : chunk?.byteLength ?? 0;
}

/** Once for each connection: Node's `end` uncorks it whatever was corked before. */
function makeHoldable(socket) {
  socket[HELD] = false;
  socket.uncork = uncork;
}

function uncork() {
  if (!this[HELD]) Duplex.prototype.uncork.call(this);
}

/** Sends what was held back. */
function letGo(socket) {
  socket[HELD] = false;
  while (socket.writableCorked > 0) socket.uncork();
}

module.exports = { attach, makeHoldable, letGo };
