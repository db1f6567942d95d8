'use strict';
// This process from the agent's view: one function, its state, its running calls, start and drain.
//
//   waiting ─start─▶ loading ─▶ ready
//                        └────▶ failed   (stays until it is killed; the agent has the error)

const { loadFunction } = require('./load.js');
const { parseSpec } = require('./spec.js');
const { callServer, listen } = require('./server.js');
const { Unsettled } = require('./unsettled.js');

/** `start` was called after the instance had left the waiting state. */
class AlreadyStarted extends Error {}
/** The code threw while loading, or does not have the requested export. */
class LoadFailed extends Error {}

class Instance {
  state = 'waiting';
  /** Calls that have not ended. */
  calls = new Set();
  name = 'function';
  timeoutMs = Infinity;
  unsettled = new Unsettled();
  #server = null;
  #rejectLoad = null;
  #drained = null;
  /** The agent's listener; set by `main.js`. */
  control = null;

  constructor({ log, capture, behindGateway }) {
    this.log = log;
    this.capture = capture;
    this.behindGateway = behindGateway;
  }

  /**
   * Loads the function and listens for its calls.
   *
   * @param {object} request see `spec.js`
   * @param {import('net').ListenOptions} where
   */
  async start(request, where) {
    if (this.state !== 'waiting') throw new AlreadyStarted(`this instance is ${this.state}`);
    const spec = parseSpec(request);
    this.state = 'loading';
    this.name = spec.function;
    this.timeoutMs = spec.timeoutMs;
    const strayFault = new Promise((_, reject) => (this.#rejectLoad = reject));
    try {
      const data = await Promise.race([this.#load(spec, where), strayFault]);
      this.state = 'ready';
      return data;
    } catch (err) {
      this.state = 'failed';
      this.#server?.close();
      throw new LoadFailed(`\`${spec.function}\` could not be loaded`, { cause: err });
    } finally {
      this.#rejectLoad = null;
    }
  }

  async #load(spec, where) {
    const startedAt = performance.now();
    Object.assign(process.env, spec.env);
    process.chdir(spec.root); // again: the folder may have been mounted after the process started
    const target = await loadFunction(spec);
    const load_ms = performance.now() - startedAt;
    this.#server = callServer(this, spec, target, { onSocket: where.path !== undefined });
    await listen(this.#server, where);
    return { signature: target.signature, load_ms };
  }

  /** Fails the current load with an error from outside its stack. False when nothing is loading. */
  failLoading(err) {
    this.#rejectLoad?.(err);
    return this.#rejectLoad !== null;
  }

  get active() {
    return this.calls.size;
  }

  address() {
    return this.#server.address();
  }

  callEnded(call) {
    this.calls.delete(call);
    this.capture.flush(call);
    if (this.#drained) this.#finishDrain();
  }

  /** Accepts no more connections; resolves when the last call has ended. The agent limits the wait. */
  drain() {
    const drained = (this.#drained ??= Promise.withResolvers());
    this.#server?.close();
    this.control?.unref(); // answers until the process ends
    this.#finishDrain();
    return drained.promise;
  }

  #finishDrain() {
    this.#server?.closeIdleConnections();
    if (this.active === 0) this.#drained.resolve();
  }
}

module.exports = { Instance, AlreadyStarted, LoadFailed };
