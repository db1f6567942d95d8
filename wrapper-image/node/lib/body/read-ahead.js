'use strict';
// Receives the body of a request before its function is called, so that `req.body` is available
// synchronously. The request remains a stream with every byte, for code that reads it directly
// (`req.pipe`, frameworks, upload parsers).
//
// Nothing is read from the stream: Node's parser pushes into it as usual. Only the backpressure
// that would pause the socket at 64 KiB is disabled, up to the limit. Bodies above the limit, or
// that announce a larger length, are not waited for: the function gets the stream, and reading
// `req.body` is refused.
//
// Parsing is the expensive part, and it waits until code reads `req.body` or `req.rawBody`.

const { Readable } = require('node:stream');
const { statedLength } = require('./kind.js');
const { inflate, parse } = require('./parse.js');
const { BodyRefused, tooLarge } = require('./refused.js');

const AHEAD = Symbol('epsilon.readAhead');

class ReadAhead {
  #req;
  #kind;
  #memory;
  #reserved = 0;
  #needs = null; // bytes, once known
  #chunks = [];
  #size = 0;
  #isReading = false; // backpressure is disabled
  #isTooLarge = false;
  #done = Promise.withResolvers();
  #raw = null; // the bytes, inflated
  #body; // the parsed value, or the value that code assigned
  #isParsed = false;
  #refusal = null;

  constructor(req, kind, memory) {
    this.#req = req;
    this.#kind = kind;
    this.#memory = memory;
    req[AHEAD] = this;
  }

  /**
   * Resolves when the function can be called: with true when the body is complete, or too large to wait for; with
   * false when the caller has disconnected.
   */
  begin() {
    const stated = statedLength(this.#req);
    if (stated > this.#memory.limit) {
      this.#isTooLarge = true;
      return Promise.resolve(true);
    }
    const req = this.#req;
    req.push = push;
    req.once('close', () => this.#done.resolve(false));
    const wanted = stated ?? this.#memory.limit;
    const granted = this.#memory.reserve(wanted);
    if (granted === null) this.#granted(wanted);
    else granted.then(() => this.#granted(wanted)).then(() => req.socket.resume()); // it stopped at the stream's high-water mark
    return this.#done.promise;
  }

  #granted(bytes) {
    this.#reserved = bytes;
    if (this.#needs !== null) this.#settleFor(this.#needs);
    else this.#isReading = true;
  }

  /** @returns whether to continue despite the stream's high-water mark */
  take(chunk) {
    if (this.#isTooLarge) return false;
    if (chunk === null) {
      this.#settleFor(this.#size);
      this.#done.resolve(true);
      return false;
    }
    this.#size += chunk.length;
    if (this.#size > this.#memory.limit) {
      this.#isTooLarge = true;
      this.#chunks = []; // the stream has them
      this.#settleFor(0);
      this.#done.resolve(true);
      return false;
    }
    this.#chunks.push(chunk);
    return this.#isReading;
  }

  /** Reduces the reservation to this size; a pending reservation, once it is granted. */
  #settleFor(bytes) {
    this.#needs = bytes;
    if (this.#reserved <= bytes) return;
    const before = this.#reserved;
    this.#reserved = bytes;
    this.#memory.shrink(before, bytes);
  }

  /** Called when the call has ended. */
  end() {
    this.#settleFor(0);
  }

  /** The bytes as received. */
  bytes() {
    if (this.#isTooLarge) throw tooLarge(this.#memory.limit);
    if (this.#chunks.length !== 1) this.#chunks = [Buffer.concat(this.#chunks, this.#size)];
    return this.#chunks[0];
  }

  get rawBody() {
    return (this.#raw ??= this.#guarded(() => inflate(this.#req, this.bytes(), this.#memory.limit)));
  }

  set rawBody(bytes) {
    this.#raw = bytes;
  }

  get body() {
    if (!this.#isParsed) this.body = this.#guarded(() => parse(this.#req, this.#kind, this.rawBody, this.#memory));
    return this.#body;
  }

  set body(value) {
    this.#body = value;
    this.#isParsed = true;
  }

  /** Repeats an earlier refusal without parsing again. */
  #guarded(make) {
    if (this.#refusal) throw this.#refusal;
    try {
      return make();
    } catch (err) {
      if (err instanceof BodyRefused) this.#refusal = err;
      throw err;
    }
  }
}

/** `push` of a request whose body is read ahead: true keeps the socket flowing. */
function push(chunk, encoding) {
  const more = Readable.prototype.push.call(this, chunk, encoding);
  return this[AHEAD].take(chunk) || more;
}

/** Own properties of the request, because an inner application replaces its prototype. */
const PROPERTIES = {
  body: {
    configurable: true, enumerable: true,
    get() { return this[AHEAD].body; },
    set(value) { this[AHEAD].body = value; },
  },
  rawBody: {
    configurable: true, enumerable: true,
    get() { return this[AHEAD].rawBody; },
    set(value) { this[AHEAD].rawBody = value; },
  },
};

module.exports = { ReadAhead, PROPERTIES };
