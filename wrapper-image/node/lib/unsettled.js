'use strict';
// Tells the agent which calls go on after their answer. It connects once (`GET /unsettled` on the control socket) and
// gets a line with the id of each call whose handler, or work given to `ctx.waitUntil`, has not settled when its answer
// ends: before the last byte of that answer, so that who has read the answer can know. Nothing is written for others.
//
// Used by `control.js`, which accepts the connection, and `call.js`, which knows when to tell.

/** An agent that lets so much wait does not read; it loses its connection, and every answer is the end of its call. */
const WAITING_MAX_BYTES = 64 * 1024;

class Unsettled {
  #agent = null;
  #holding = new Set(); // calls whose answer's end is held back

  get isWatched() {
    return this.#agent !== null;
  }

  /** Takes over from an earlier connection. */
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

  tell(call) {
    if (this.#agent === null) return;
    this.#agent.write(`${call.id}\n`); // at once: the kernel has it before it gets the answer's end
    if (this.#agent.writableLength > WAITING_MAX_BYTES) this.#agent.destroy();
  }

  add(call) {
    this.#holding.add(call);
  }

  delete(call) {
    this.#holding.delete(call);
  }

  /** The process ends: answers that are done reach their callers, as they do without anybody who holds them. */
  letGoAll() {
    for (const call of this.#holding) call.letGo();
  }
}

module.exports = { Unsettled };
