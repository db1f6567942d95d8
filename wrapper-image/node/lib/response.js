'use strict';
// Wraps every response of the call listener, for all signatures and frameworks: its own
// `writeHead`, `write` and `end` run before those of its class. They are own properties of the
// response, because an Express application replaces its prototype.
//
// - A stated `Content-Length` that differs from the body is never sent as it is: a complete body gets its real
//   length, and a stream with another length is cut, with an error in the log. Node would send both unchanged, and the
//   excess bytes would be read as the next response on the connection.
// - A `Location` that is a path gets the path prefix under which the function is called.
// - The end of a response is held back until it is known whether its handler has settled (`call.js`).

const { Duplex } = require('node:stream');

const CALL = Symbol('epsilon.call');
const LEFT = Symbol('epsilon.left');
const HELD = Symbol('epsilon.held');

const LENGTH_LINE = /\r\ncontent-length: [^\r]*/i;
const LOCATION_LINE = /(\r\nlocation: )(\/(?![/\\])[^\r]*)/i;

/** Assigns a response to this call. */
function attach(res, call) {
  res[CALL] = call;
  res[LEFT] = undefined; // remaining bytes according to the stated length
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
  // Node stores here the stated length, or the length of a complete body.
  if (this._hasBody && typeof this._contentLength === 'number') {
    if (this.chunkedEncoding) this._header = this._header.replace(LENGTH_LINE, '');
    else this[LEFT] = this._contentLength;
  }
  return this;
}

function flushHeaders() {
  if (!this._header) this._implicitHeader();
  // A response without a body is complete with its head.
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
  // The last stated byte is the end of the response, whenever `end` is called.
  if (isCounted && this[LEFT] === 0) return last(this, 'write', chunk, encoding, callback);
  return Object.getPrototypeOf(this).write.call(this, chunk, encoding, callback);
}

/** Subtracts a chunk from the remaining length; false if it exceeds the stated length: the response is cut. */
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

/** Writes the last bytes of a response; they are held in the socket until the call knows whether it continues. */
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

/** Whether the length matches the stated length after this chunk; corrects the stated length while that is possible. */
function completes(res, chunk, encoding) {
  const size = chunk === undefined || chunk === null ? 0 : sizeOf(chunk, encoding);
  if (!res._header) {
    // The whole body is known, so its length is too. For HEAD and 304 the length is that of another response.
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

/** The original method refuses values that cannot be sent. */
function sizeOf(chunk, encoding) {
  return typeof chunk === 'string' ? Buffer.byteLength(chunk, encoding) : chunk?.byteLength ?? 0;
}

/** Once per connection: Node's `end` uncorks it, even if it was corked before. */
function makeHoldable(socket) {
  socket[HELD] = false;
  socket.uncork = uncork;
}

function uncork() {
  if (!this[HELD]) Duplex.prototype.uncork.call(this);
}

/** Sends the bytes that were held back. */
function letGo(socket) {
  socket[HELD] = false;
  while (socket.writableCorked > 0) socket.uncork();
}

module.exports = { attach, makeHoldable, letGo };
