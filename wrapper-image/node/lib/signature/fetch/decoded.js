'use strict';
// Whether the body of a `Response` is still what its `Content-Encoding` says. The platform's own `fetch` decodes what it
// gets and leaves the headers as they came, so a response that is handed on, or made anew of another one's body and
// headers, states a coding and a length that are no longer there. Pure.

const zlib = require('node:zlib');

/** What `fetch` decodes; with any other coding among them it decodes nothing. */
const DECODED = new Set(['gzip', 'x-gzip', 'deflate', 'br', 'zstd']);

/** Whether these first bytes can be of a coding. */
const LOOKS = {
  gzip: (bytes, isWhole) => startsWith(bytes, [0x1f, 0x8b], isWhole),
  deflate: (bytes, isWhole) => (bytes.length < 2 && !isWhole) || (bytes[0] & 0x0f) === 8 && ((bytes[0] << 8) | bytes[1]) % 31 === 0,
  zstd: (bytes, isWhole) => startsWith(bytes, [0x28, 0xb5, 0x2f, 0xfd], isWhole),
  br: looksBrotli,
};
LOOKS['x-gzip'] = LOOKS.gzip;
/** Enough to find out that bytes are no Brotli, which has no mark at its beginning. */
const LOOK_BYTES = 1024;
const LOOK_OUTPUT_BYTES = 64 * 1024;
const NONE = [''];

/** Fewer bytes than the mark can still become it, unless nothing follows. */
function startsWith(bytes, mark, isWhole) {
  if (isWhole && bytes.length < mark.length) return false;
  return mark.slice(0, bytes.length).every((byte, at) => bytes[at] === byte);
}

/** Whether the response came from `fetch`, and was not made by the code: its length was checked on its way. */
function isFetched({ type }) {
  return type !== undefined && type !== 'default' && type !== 'error';
}

/** Whether only the first bytes of the body can tell. */
function needsLook(response) {
  return !isFetched(response) && codingsOf(response).every((coding) => DECODED.has(coding));
}

/**
 * @param {Uint8Array} [bytes] what was read first of the body
 * @param {boolean} isWhole that is all of it
 */
function isDecoded(response, bytes, isWhole) {
  const codings = codingsOf(response);
  if (!codings.every((coding) => DECODED.has(coding))) return false;
  if (isFetched(response)) return true;
  // The code made it, perhaps of an upstream's body and headers: the bytes tell.
  return bytes === undefined || !LOOKS[codings.at(-1)](bytes, isWhole);
}

/** `['']` without any, which is none that is decoded. */
function codingsOf({ headers }) {
  const stated = headers.get('content-encoding');
  return stated ? stated.toLowerCase().split(',').map((coding) => coding.trim()) : NONE;
}

/** Brotli has no mark at its beginning, but most other bytes break its rules soon. */
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
