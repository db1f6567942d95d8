'use strict';
// The share of the memory that bodies of running calls take together, so that many callers at once cannot do what
// one cannot. A body that does not fit waits, unread, until others are over; the agent's deadline ends the wait.

const os = require('node:os');

/** Of the instance's memory, for bodies that were read ahead. */
const MEMORY_SHARE = 8;
/** Bodies up to this size never wait: as many as an instance has calls of them are a few MiB. */
const FREE_BYTES = 64 * 1024;
/**
 * Bytes of memory for one separator (`[`, `{`, `,`) of a JSON body. A value takes 10 to 130 bytes when it is parsed
 * (measured: lists of numbers, lists of lists, objects with many keys), and a quarter of the memory is for them.
 */
const BYTES_PER_VALUE = 256;

/** What this process may take. Without a limit of its own, what the machine has. */
function memoryLimit() {
  return Math.min(process.constrainedMemory() || Infinity, os.totalmem());
}

class BodyMemory {
  #free;
  #waiting = []; // { bytes, grant }, first come first served

  /** @param {number} limit of one body; one always fits */
  constructor(limit, memory = memoryLimit()) {
    this.limit = limit;
    this.valuesLimit = Math.floor(memory / BYTES_PER_VALUE);
    this.#free = Math.max(limit, Math.floor(memory / MEMORY_SHARE));
  }

  /** Takes room for a body. @returns {Promise<void> | null} null: it has it already */
  reserve(bytes) {
    if (bytes <= FREE_BYTES) return null;
    if (this.#waiting.length === 0 && bytes <= this.#free) {
      this.#free -= bytes;
      return null;
    }
    return new Promise((grant) => this.#waiting.push({ bytes, grant }));
  }

  /** Gives back `from - to` of what was reserved: a body turned out to be smaller, or its call is over. */
  shrink(from, to = 0) {
    this.#free += (from <= FREE_BYTES ? 0 : from) - (to <= FREE_BYTES ? 0 : to);
    while (this.#waiting.length > 0 && this.#waiting[0].bytes <= this.#free) {
      const { bytes, grant } = this.#waiting.shift();
      this.#free -= bytes;
      grant();
    }
  }
}

module.exports = { BodyMemory };
