'use strict';
// Limits the memory that bodies of running calls use together, so that many callers cannot exhaust
// it. A body that does not fit waits, unread, until other calls have ended; the agent's deadline
// limits the wait.

const os = require('node:os');

/** Share of the instance's memory for bodies that are read ahead. */
const MEMORY_SHARE = 8;
/** Bodies up to this size never wait: with one per concurrent call they total a few MiB. */
const FREE_BYTES = 64 * 1024;
/**
 * Memory in bytes for one separator (`[`, `{`, `,`) of a JSON body. A parsed value takes 10 to 130 bytes (measured with lists of
 * numbers, lists of lists, and objects with many keys), and a quarter of the memory is available for parsed values.
 */
const BYTES_PER_VALUE = 256;

/** Memory limit of this process, or the machine's memory if it has none. */
function memoryLimit() {
  return Math.min(process.constrainedMemory() || Infinity, os.totalmem());
}

class BodyMemory {
  #free;
  #waiting = []; // { bytes, grant }, first come, first served

  /** @param {number} limit of one body; one always fits */
  constructor(limit, memory = memoryLimit()) {
    this.limit = limit;
    this.valuesLimit = Math.floor(memory / BYTES_PER_VALUE);
    this.#free = Math.max(limit, Math.floor(memory / MEMORY_SHARE));
  }

  /** Reserves memory for a body. @returns {Promise<void> | null} null if it was reserved at once */
  reserve(bytes) {
    if (bytes <= FREE_BYTES) return null;
    if (this.#waiting.length === 0 && bytes <= this.#free) {
      this.#free -= bytes;
      return null;
    }
    return new Promise((grant) => this.#waiting.push({ bytes, grant }));
  }

  /** Releases `from - to` of the reservation: the body turned out to be smaller, or its call has ended. */
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
