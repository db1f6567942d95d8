'use strict';
// One call: its id and caller, its deadline, whether it has ended, and how a failure changes its
// response.
//
// A call ends when its handler has settled *and* its response is closed (finished, or the caller
// has disconnected); until then it is one of the instance's `calls`. Created by `server.js`.
// `AsyncLocalStorage` follows it through all asynchronous work of the handler, so that log lines
// and unhandled rejections can be assigned to it.
//
// Most handlers settle together with their response, in the same turn of the event loop, and the
// agent takes the last byte of the response as the end of the call. To make that correct, the last
// bytes are held back within that turn, and a call that continues is reported first.

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
/** Codes of errors that user code causes by responding a second time. */
const TWICE = new Set(['ERR_HTTP_HEADERS_SENT', 'ERR_STREAM_WRITE_AFTER_END']);
/** Fraction of the timeout after which the log mentions a handler that ended without a response. */
const SILENT_AFTER = 0.9;
const RESOLVED = Promise.resolve();

class Call {
  #instance;
  #holds = 2; // the handler, and the response
  #isReported = false;
  #socket = null; // the socket that holds back the end of the response
  /** Path prefix under which the function is called; empty when it has its own host name. */
  prefix = '';
  /** The part of the request body that was read ahead. */
  body = null;
  /** How an error before the head becomes a response; a signature may replace it. */
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

  /** Remaining milliseconds, from the deadline header or else the function's timeout. */
  remainingMs() {
    const limit = Number(this.req.headers[DEADLINE_HEADER] ?? this.#instance.timeoutMs);
    return Math.max(0, limit - (performance.now() - this.startedAt));
  }

  /** Runs a function as part of this call. */
  run(fn, ...args) {
    return storage.run(this, fn, ...args);
  }

  /** Runs the handler and waits for it if it returns a promise. */
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

  /** Keeps the call active until the promise settles; its rejection fails the call. */
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

  /** Whether the last bytes of the response must wait until the end of this turn. `isEnd`: they end the response. */
  holdsEnd(isEnd) {
    return (this.#holds > 1 || !isEnd) && !this.#isReported && this.#instance.unsettled.isWatched;
  }

  /** This socket holds back the end of the response. */
  held(socket) {
    this.#socket = socket;
    this.#instance.unsettled.add(this);
    // A handler that settles with its response does so in microtasks. Ticks run before or after them, so wait for both.
    process.nextTick(queueLast, this);
  }

  /** A response may have all its stated bytes without having been ended. An upgrade has no response. */
  get #isAnswered() {
    return this.res?.writableEnded ?? true;
  }

  get isHeld() {
    return this.#socket !== null;
  }

  /** Every microtask has run, and the call has not ended. */
  turnEnded() {
    this.tellIfPending();
    this.letGo();
  }

  /** Reports to the agent, once, that this call continues after its last byte: the handler runs, or the response is not ended. */
  tellIfPending() {
    if (this.#isReported || (this.#holds < 2 && this.#isAnswered)) return;
    this.#isReported = true;
    this.#instance.unsettled.report(this);
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

  /** The handler has ended without a response: logs a warning when most of the timeout has passed and there is still none. */
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
   * The handler threw or rejected: now, later, or after it had responded. The stack goes to the log; the
   * caller gets what is still possible: an error response, a closed connection, or the response that was sent.
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

  /** The function's response does not match its head. */
  failAnswer(message) {
    this.#instance.log.write('error', message, this);
    this.res.destroy();
  }
}

/** Resolves after all pending microtasks and those that they create. */
function queueLast(call) {
  if (call.isHeld) RESOLVED.then(() => process.nextTick(turnEnded, call));
}

function turnEnded(call) {
  if (call.isHeld) call.turnEnded();
}

/**
 * `emit` for the streams of a call. Node emits their events in the context of the connection, which serves
 * many calls; handlers must run in the context of the call that registered them.
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
