'use strict';
// Whether the body of a `Response` still has the coding of its `Content-Encoding`. The platform's
// `fetch` decodes bodies and leaves the headers unchanged. So a response that is passed on, or
// built from another response's body and headers, states a coding and a length that no longer
// apply. Pure.

const zlib = require('node:zlib');

/** Codings that `fetch` decodes; with any other coding in the list it decodes nothing. */
const DECODED = new Set(['gzip', 'x-gzip', 'deflate', 'br', 'zstd']);

/** Whether these first bytes can belong to a coding. */
const LOOKS = {
  gzip: (bytes, isWhole) => startsWith(bytes, [0x1f, 0x8b], isWhole),
  deflate: (bytes, isWhole) => (bytes.length < 2 && !isWhole) || (bytes[0] & 0x0f) === 8 && ((bytes[0] << 8) | bytes[1]) % 31 === 0,
  zstd: (bytes, isWhole) => startsWith(bytes, [0x28, 0xb5, 0x2f, 0xfd], isWhole),
  br: looksBrotli,
};
LOOKS['x-gzip'] = LOOKS.gzip;
/** Enough bytes to find out that they are not Brotli, which has no magic number. */
const LOOK_BYTES = 1024;
const LOOK_OUTPUT_BYTES = 64 * 1024;
const NONE = [''];

/** Fewer bytes than the magic number may still become it, unless nothing follows. */
function startsWith(bytes, mark, isWhole) {
  if (isWhole && bytes.length < mark.length) return false;
  return mark.slice(0, bytes.length).every((byte, at) => bytes[at] === byte);
}

/** Whether the response came from `fetch` and was not made by the code: then its length was checked. */
function isFetched({ type }) {
  return type !== undefined && type !== 'default' && type !== 'error';
}

/** Whether the first bytes of the body are needed to decide. */
function needsLook(response) {
  return !isFetched(response) && codingsOf(response).every((coding) => DECODED.has(coding));
}

/**
 * @param {Uint8Array} [bytes] the first bytes of the body
 * @param {boolean} isWhole whether `bytes` is the whole body
 */
function isDecoded(response, bytes, isWhole) {
  const codings = codingsOf(response);
  if (!codings.every((coding) => DECODED.has(coding))) return false;
  if (isFetched(response)) return true;
  // The code made it, perhaps from an upstream's body and headers: decide by the bytes.
  return bytes === undefined || !LOOKS[codings.at(-1)](bytes, isWhole);
}

/** `['']` without the header, which is not a decoded coding. */
function codingsOf({ headers }) {
  const stated = headers.get('content-encoding');
  return stated ? stated.toLowerCase().split(',').map((coding) => coding.trim()) : NONE;
}

/** Brotli has no magic number, but most other data is invalid Brotli after a few bytes. */
function looksBrotli(bytes, isWhole) {
  const { BROTLI_OPERATION_FINISH, BROTLI_OPERATION_FLUSH } = zlib.constants;
  try {
    zlib.brotliDecompressSync(isWhole ? bytes : bytes.subarray(0, LOOK_BYTES), {
      finishFlush: isWhole ? BROTLI_OPERATION_FINISH : BROTLI_OPERATION_FLUSH, maxOutputLength: LOOK_OUTPUT_BYTES,
    });
    return true;
  } catch (err) {
    return err.code === 'ERR_BUFFER_TOO_LARGE';
  }
}

module.exports = { isDecoded, isFetched, needsLook };
