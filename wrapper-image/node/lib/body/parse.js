'use strict';
// Makes of the bytes of a body what `req.body` is, at once (not by streams), within limits that hold before memory is
// taken: inflating stops at the limit of bytes, and JSON is counted before it is parsed. Same results as Express's
// own parsers; `test/express.test.js` and `test/bodies.test.js` hold it to them.

const zlib = require('node:zlib');
const iconv = require('iconv-lite');
const qs = require('qs');
const { charsetOf } = require('./kind.js');
const { tooLarge, tooManyValues, tooManyFields, malformed, unsupported } = require('./refused.js');

/** As Express's. */
const FORM_FIELDS_MAX = 1000;
const FORM_DEPTH_MAX = 32;
/** A decoder of Zstandard takes as much memory as the sender's window says; RFC 9659 allows HTTP 8 MiB. */
const ZSTD_WINDOW_LOG_MAX = 23;

const INFLATE = {
  gzip: zlib.gunzipSync,
  'x-gzip': zlib.gunzipSync,
  deflate: zlib.inflateSync,
  br: zlib.brotliDecompressSync,
  zstd: (bytes, options) => zlib.zstdDecompressSync(bytes, {
    ...options, params: { [zlib.constants.ZSTD_d_windowLogMax]: ZSTD_WINDOW_LOG_MAX },
  }),
};
const PARSE = { json: parseJson, form: parseForm, text: parseText, raw: (req, bytes) => bytes };

/** The body's bytes after its `Content-Encoding`. */
function inflate(req, bytes, limit) {
  const encoding = (req.headers['content-encoding'] ?? 'identity').toLowerCase();
  if (encoding === 'identity') return bytes;
  if (!Object.hasOwn(INFLATE, encoding)) throw unsupported('content encoding', encoding);
  try {
    return INFLATE[encoding](bytes, { maxOutputLength: limit });
  } catch (err) {
    throw err.code === 'ERR_BUFFER_TOO_LARGE' ? tooLarge(limit) : malformed(err);
  }
}

/** @param {'json'|'form'|'text'|'raw'} kind */
function parse(req, kind, bytes, { valuesLimit }) {
  return PARSE[kind](req, bytes, valuesLimit);
}

function parseJson(req, bytes, valuesLimit) {
  const charset = charsetOf(req) ?? 'utf-8';
  if (!charset.startsWith('utf-')) throw unsupported('charset', charset.toUpperCase());
  if (bytes.length === 0) return {}; // as Express: a common mistake of clients
  if (bytes.length > valuesLimit && separators(bytes) > valuesLimit) throw tooManyValues(valuesLimit);
  const text = decode(bytes, charset);
  try {
    return JSON.parse(text);
  } catch (err) {
    throw malformed(err);
  }
}

/** Every value but the first follows one of these. Those within texts count too: that is cheap, and on the safe side. */
function separators(bytes) {
  let count = 0;
  for (let i = 0; i < bytes.length; i += 1) {
    const byte = bytes[i];
    if (byte === 0x2c || byte === 0x5b || byte === 0x7b) count += 1;
  }
  return count;
}

function parseForm(req, bytes) {
  const charset = charsetOf(req) ?? 'utf-8';
  if (charset !== 'utf-8' && charset !== 'iso-8859-1') throw unsupported('charset', charset.toUpperCase());
  let fields = 1;
  for (let at = bytes.indexOf(0x26); at !== -1; at = bytes.indexOf(0x26, at + 1)) {
    fields += 1;
    if (fields > FORM_FIELDS_MAX) throw tooManyFields(FORM_FIELDS_MAX);
  }
  try {
    return qs.parse(decode(bytes, charset), {
      allowPrototypes: true, arrayLimit: Math.max(100, fields), depth: FORM_DEPTH_MAX, strictDepth: true,
      charset, parameterLimit: FORM_FIELDS_MAX,
    });
  } catch (err) {
    throw malformed(err);
  }
}

function parseText(req, bytes) {
  return decode(bytes, charsetOf(req) ?? 'utf-8');
}

function decode(bytes, charset) {
  if (charset === 'utf-8' && bytes[0] !== 0xef) return bytes.toString(); // all but what may be a mark of byte order
  if (!iconv.encodingExists(charset)) throw unsupported('charset', charset.toUpperCase());
  return iconv.decode(bytes, charset);
}

module.exports = { inflate, parse };
