'use strict';
// What the head of a request says about its body: whether there is one, its length, and how it is
// parsed. Pure.
//
// | content type | `req.body` |
// |---|---|
// | `application/json`, `*+json` | the value (any JSON value, not only objects) |
// | `application/x-www-form-urlencoded` | an object, nested by `a[b]=1` |
// | `text/*` | a string |
// | `multipart/*` | not read: it is only a stream, as busboy and multer expect it |
// | anything else | a Buffer |

function hasBody({ headers }) {
  return headers['transfer-encoding'] !== undefined || headers['content-length'] !== undefined;
}

/** Length stated in the head; `undefined` for a chunked body. */
function statedLength({ headers }) {
  return headers['transfer-encoding'] === undefined ? Number(headers['content-length']) : undefined;
}

/** @returns {'json'|'form'|'text'|'raw'|'stream'} */
function kindOf({ headers }) {
  const type = (headers['content-type'] ?? '').split(';', 1)[0].trim().toLowerCase();
  if (type === 'application/json' || type.endsWith('+json')) return 'json';
  if (type === 'application/x-www-form-urlencoded') return 'form';
  if (type.startsWith('text/')) return 'text';
  if (type.startsWith('multipart/')) return 'stream';
  return 'raw';
}

/** @returns {string | undefined} lower case */
function charsetOf({ headers }) {
  return /;\s*charset\s*=\s*"?([^\s;"]+)/i.exec(headers['content-type'] ?? '')?.[1].toLowerCase();
}

module.exports = { hasBody, statedLength, kindOf, charsetOf };
