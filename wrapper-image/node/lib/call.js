'use strict';
// One call: whose it is, how long it may run, whether it is over, and what a failure does to its answer.
//
// A call is over when its handler has settled *and* its response is closed (finished, or the caller is
// gone); until then it counts in the instance's `active`. Made by `server.js`; followed through all
// asynchronous work of the handler by `AsyncLocalStorage`, which is how log lines and stray rejections
// find it.

const { AsyncLocalStorage } = require('node:async_hooks');
const { randomBytes } = require('node:crypto');
const { EventEmitter } = require('node:events');
const { answerFunctionError } = require('./answer.js');

const storage = new AsyncLocalStorage();
const ID_HEADER = 'x-epsilon-request-id';
const DEADLINE_HEADER = 'x-epsilon-deadline-ms';
const ID_SHAPE = /^[A-Za-z0-9._-]{8,64}$/;
/** Errors of user code that answers once more after it has answered. */
const TWICE = new Set(['ERR_HTTP_HEADERS_SENT', 'ERR_STREAM_WRITE_AFTER_END']);
/** Part of its time after which a handler that ended without an answer is named in the log. */
const SILENT_AFTER = 0.9;

class Call {
  #instance;
  #holds = 2; // the handler, and the response

  constructor(instance, req, res) {
    const id = req.headers[ID_HEADER];
    this.#instance = instance;
    this.id = ID_SHAPE.test(id ?? '') ? id : randomBytes(16).toString('hex');
    this.req = req;
    this.res = res;
    this.startedAt = performance.now();
    instance.active += 1;
  }

  get ended() {
    return this.#holds === 0;
  }

  get functionName() {
    return this.#instance.name;
  }

  /** Milliseconds that are left, by the deadline header or, without one, the function's own timeout. */
  remainingMs() {
    const limit = Number(this.req.headers[DEADLINE_HEADER] ?? this.#instance.timeoutMs);
    return Math.max(0, limit - (performance.now() - this.startedAt));
  }

  /** Runs a function as part of this call. */
  run(fn, ...args) {
    return storage.run(this, fn, ...args);
  }

  /** Runs the handler and waits for it, if it can be waited for. */
  begin(handler) {
    let result;
    try {
      result = storage.run(this, handler, this);
    } catch (err) {
      this.fail(err);
    }
    if (typeof result?.then !== 'function') return this.release();
    result.then(
      () => this.#settled(),
      (err) => {
        this.fail(err);
        this.release();
      },
    );
  }

  /** Keeps the call active until the promise settles; its rejection is the call's. */
  waitUntil(promise) {
    this.#holds += 1;
    Promise.resolve(promise).catch((err) => this.fail(err)).finally(() => this.release());
  }

  release() {
    this.#holds -= 1;
    if (this.#holds === 0) this.#instance.callEnded(this);
  }

  #settled() {
    const { res } = this;
    if (res && !res.headersSent && !res.destroyed) {
      // Legal (a timer may answer later), but nearly always a forgotten `res.send`.
      const timer = setTimeout(() => {
        if (res.headersSent || res.destroyed) return;
        this.#instance.log.write('warn', 'The handler ended without an answer; is a `res.send()` missing?', this);
      }, this.remainingMs() * SILENT_AFTER);
      timer.unref();
      res.once('close', () => clearTimeout(timer));
    }
    this.release();
  }

  /**
   * The handler threw or rejected: now, later, or after it had answered. The stack goes to the log; the
   * caller gets what is still possible: a whole error, a cut connection, or the answer that was sent.
   */
  fail(err) {
    const { res } = this;
    const { log } = this.#instance;
    if (TWICE.has(err?.code) && res?.headersSent) {
      log.write('warn', `The function answered twice; the second answer was dropped.\n${err.stack}`, this);
    } else {
      log.error('The function threw.', err, this);
    }
    if (!res) return this.refuseUpgrade?.();
    if (res.destroyed || res.writableEnded) return;
    if (res.headersSent) res.destroy();
    else answerFunctionError(res, this);
  }
}

/**
 * `emit` for the streams of a call. Node emits their events on behalf of the connection, which serves
 * many calls; handlers must run as part of the call that registered them.
 */
function emitInCall(call) {
  return function emit(...args) {
    if (storage.getStore() === call) return EventEmitter.prototype.emit.apply(this, args);
    return storage.run(call, () => EventEmitter.prototype.emit.apply(this, args));
  };
}

/** The call that the running code belongs to; undefined while loading and between calls. */
function currentCall() {
  return storage.getStore();
}

module.exports = { Call, currentCall, emitInCall, TWICE, ID_HEADER };
