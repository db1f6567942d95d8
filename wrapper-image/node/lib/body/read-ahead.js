'use strict';
// Takes in the body of a request before its function is called, so that `req.body` can be there at once, and leaves the
// request a stream that still has every byte, for code that reads it itself (`req.pipe`, frameworks, upload parsers).
//
// Nothing is read from the stream: Node's parser pushes into it as always, and only the pressure that would hold the
// socket up at 64 KiB is taken off, up to the limit. Above it, and for bodies that say so at once, nothing is waited
// for: the function gets the stream, and reading `req.body` is refused.
//
// Parsing is what costs, and it waits until code asks for `req.body` or `req.rawBody`.

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
  #needs = null; // bytes, as soon as that is known
  #chunks = [];
  #size = 0;
  #isReading = false; // the pressure is off
  #isTooLarge = false;
  #done = Promise.withResolvers();
  #raw = null; // the bytes, inflated
  #body; // what was parsed, or what code has put there
  #isParsed = false;
  #refusal = null;

  constructor(req, kind, memory) {
    this.#req = req;
    this.#kind = kind;
    this.#memory = memory;
    req[AHEAD] = this;
  }

  /**
   * Resolves when the function can be called: with true when the body is whole, or too large to be waited for; with
   * false when the caller is gone.
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
    else granted.then(() => this.#granted(wanted)).then(() => req.socket.resume()); // it stopped at the stream's own mark
    return this.#done.promise;
  }

  #granted(bytes) {
    this.#reserved = bytes;
    if (this.#needs !== null) this.#settleFor(this.#needs);
    else this.#isReading = true;
  }

  /** @returns whether more is wanted at once, whatever the stream's own mark says */
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

  /** Keeps so much of what was reserved; of what is still waited for, as soon as it is there. */
  #settleFor(bytes) {
    this.#needs = bytes;
    if (this.#reserved <= bytes) return;
    const before = this.#reserved;
    this.#reserved = bytes;
    this.#memory.shrink(before, bytes);
  }

  /** The call is over. */
  end() {
    this.#settleFor(0);
  }

  /** The bytes as they came. */
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

  /** What was refused once is refused again, without the work. */
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

/** Properties of the request itself, not of its class: an application inside gives it another class. */
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
