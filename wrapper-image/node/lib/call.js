'use strict';
// One call: whose it is, how long it may run, whether it is over, and what a failure does to its answer.
//
// A call is over when its handler has settled *and* its response is closed (finished, or the caller is
// gone); until then it is one of the instance's `calls`. Made by `server.js`; followed through all
// asynchronous work of the handler by `AsyncLocalStorage`, which is how log lines and stray rejections
// find it.
//
// Most handlers settle with their answer, in the same turn of the event loop, and the agent takes the answer's last byte
// for the call's end. So that it can, the last bytes wait within that turn, and a call that goes on is told first.

const { AsyncLocalStorage } = require('node:async_hooks');
const { randomBytes } = require('node:crypto');
const { EventEmitter } = require('node:events');
const { answerFunctionError, answerRefusedBody } = require('./answer.js');
const { BodyRefused } = require('./body/refused.js');
const { letGo } = require('./response.js');

const storage = new AsyncLocalStorage();
const ID_HEADER = 'x-epsilon-request-id';
const DEADLINE_HEADER = 'x-epsilon-deadline-ms';
const ID_SHAPE = /^[A-Za-z0-9._-]{8,64}$/;
/** Errors of user code that answers once more after it has answered. */
const TWICE = new Set(['ERR_HTTP_HEADERS_SENT', 'ERR_STREAM_WRITE_AFTER_END']);
/** Part of its time after which a handler that ended without an answer is named in the log. */
const SILENT_AFTER = 0.9;
const RESOLVED = Promise.resolve();

class Call {
  #instance;
  #holds = 2; // the handler, and the response
  #isTold = false;
  #socket = null; // that holds the end of the answer back
  /** Under which path the function is called; empty when it has a host of its own. */
  prefix = '';
  /** What was read ahead of the request's body. */
  body = null;
  /** What the caller gets of an error before the head; a signature may have its own way. */
  answerFailure = answerFunctionError;

  constructor(instance, req, res) {
    const id = req.headers[ID_HEADER];
    this.#instance = instance;
    this.id = ID_SHAPE.test(id ?? '') ? id : randomBytes(16).toString('hex');
    this.req = req;
    this.res = res;
    this.startedAt = performance.now();
    instance.calls.add(this);
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
    if (this.#holds > 1) return;
    if (this.#socket !== null && this.#isAnswered) this.letGo();
    if (this.#holds > 0) return;
    this.body?.end();
    this.#instance.callEnded(this);
  }

  /** Whether the last bytes of the answer have to wait for what is known at the end of this turn. `isEnd`: it is ended with them. */
  holdsEnd(isEnd) {
    return (this.#holds > 1 || !isEnd) && !this.#isTold && this.#instance.unsettled.isWatched;
  }

  /** The end of the answer lies in this socket. */
  held(socket) {
    this.#socket = socket;
    this.#instance.unsettled.add(this);
    // All that settles with the answer does so in microtasks. Ticks run before them or after, so: one more of each.
    process.nextTick(queueLast, this);
  }

  /** An answer may have all the bytes that it stated, and not be ended by the code yet. An upgrade has none. */
  get #isAnswered() {
    return this.res?.writableEnded ?? true;
  }

  get isHeld() {
    return this.#socket !== null;
  }

  /** Every microtask has run, and the call is not over. */
  turnEnded() {
    this.tellIfPending();
    this.letGo();
  }

  /** Tells the agent, once, that this call goes on after its last byte: its handler, or its answer that is not ended. */
  tellIfPending() {
    if (this.#isTold || (this.#holds < 2 && this.#isAnswered)) return;
    this.#isTold = true;
    this.#instance.unsettled.tell(this);
  }

  letGo() {
    const socket = this.#socket;
    this.#socket = null;
    this.#instance.unsettled.delete(this);
    letGo(socket);
  }

  #settled() {
    const { res } = this;
    // Legal (a timer may answer later), but nearly always a forgotten `res.send`.
    if (res && !res.headersSent && !res.destroyed) this.warnIfSilent('is a `res.send()` missing?');
    this.release();
  }

  /** The handler has ended without an answer: the log says so when most of the call's time is over and there is still none. */
  warnIfSilent(question) {
    const { res } = this;
    const timer = setTimeout(() => {
      if (res.headersSent || res.destroyed) return;
      this.#instance.log.write('warn', `The handler ended without an answer; ${question}`, this);
    }, this.remainingMs() * SILENT_AFTER);
    timer.unref();
    res.once('close', () => clearTimeout(timer));
  }

  /**
   * The handler threw or rejected: now, later, or after it had answered. The stack goes to the log; the
   * caller gets what is still possible: a whole error, a cut connection, or the answer that was sent.
   */
  fail(err) {
    const { res } = this;
    const { log } = this.#instance;
    if (err instanceof BodyRefused && res && !res.headersSent) return res.destroyed ? undefined : answerRefusedBody(res, this, err);
    if (TWICE.has(err?.code) && res?.headersSent) {
      log.write('warn', `The function answered twice; the second answer was dropped.\n${err.stack}`, this);
    } else {
      log.error('The function threw.', err, this);
    }
    if (!res) return this.refuseUpgrade?.();
    if (res.destroyed || res.writableEnded) return;
    if (res.headersSent) res.destroy();
    else this.answerFailure(res, this, err);
  }

  /** The function's answer is not what its head says. */
  failAnswer(message) {
    this.#instance.log.write('error', message, this);
    this.res.destroy();
  }
}

/** Behind the microtasks that are there now, and behind those that they make. */
function queueLast(call) {
  if (call.isHeld) RESOLVED.then(() => process.nextTick(turnEnded, call));
}

function turnEnded(call) {
  if (call.isHeld) call.turnEnded();
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
