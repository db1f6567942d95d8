'use strict';
// Reports to the agent which calls continue after their response. The agent connects once (`GET
// /unsettled` on the control socket) and gets a line with the id of each call whose handler, or
// work given to `ctx.waitUntil`, has not settled when its response ends. The line is sent before
// the last byte of that response, so that a reader of the complete response has it already. Nothing
// is written for other calls.
//
// Used by `control.js`, which accepts the connection, and `call.js`, which decides when to report.

/** An agent with this much unread data does not read; its connection is closed, and every response is then the end of its call. */
const WAITING_MAX_BYTES = 64 * 1024;

class Unsettled {
  #agent = null;
  #holding = new Set(); // calls whose end of response is held back

  get isWatched() {
    return this.#agent !== null;
  }

  /** Replaces an earlier connection. */
  watch(socket) {
    this.#agent?.destroy();
    this.#agent = socket;
    const gone = () => {
      if (this.#agent === socket) this.#agent = null;
    };
    socket.on('error', gone).on('close', gone).on('end', () => socket.end());
    socket.resume();
    socket.unref(); // does not keep the process
    socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: unsettled\r\n\r\n');
  }

  report(call) {
    if (this.#agent === null) return;
    this.#agent.write(`${call.id}\n`); // at once: the kernel gets it before the end of the response
    if (this.#agent.writableLength > WAITING_MAX_BYTES) this.#agent.destroy();
  }

  add(call) {
    this.#holding.add(call);
  }

  delete(call) {
    this.#holding.delete(call);
  }

  /** The process ends: sends all finished responses that are held back. */
  letGoAll() {
    for (const call of this.#holding) call.letGo();
  }
}

module.exports = { Unsettled };
