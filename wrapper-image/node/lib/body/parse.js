'use strict';
// Converts the bytes of a body into the value of `req.body`, synchronously, within limits that are
// checked before memory is used: inflating stops at the byte limit, and JSON values are counted
// before parsing. The results equal those of Express's own parsers; `test/express.test.js` and
// `test/bodies.test.js` check that.

const zlib = require('node:zlib');
const iconv = require('iconv-lite');
const qs = require('qs');
const { charsetOf } = require('./kind.js');
const { tooLarge, tooManyValues, tooManyFields, malformed, unsupported } = require('./refused.js');

/** As Express's. */
const FORM_FIELDS_MAX = 1000;
const FORM_DEPTH_MAX = 32;
/** A Zstandard decoder uses as much memory as the sender's window size; RFC 9659 limits it to 8 MiB for HTTP. */
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

/** Every value except the first follows one of these. Those inside strings count too, which is cheap and safe. */
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
  if (charset === 'utf-8' && bytes[0] !== 0xef) return bytes.toString(); // unless it may start with a byte order mark
  if (!iconv.encodingExists(charset)) throw unsupported('charset', charset.toUpperCase());
  return iconv.decode(bytes, charset);
}

module.exports = { inflate, parse };
