'use strict';
// Why a body is refused: the error that reading `req.body` throws, and that the caller gets when
// the function does not catch it (`call.js`). It names only the limit that was exceeded.

class BodyRefused extends Error {
  /** For frameworks that convert thrown errors into responses (Express, Koa, Fastify). */
  expose = true;

  constructor(status, message, hint = null) {
    super(message);
    this.name = 'BodyRefused';
    this.status = this.statusCode = status;
    this.hint = hint;
  }
}

/** The decompressed body is larger than the limit. */
function tooLarge(limit) {
  return new BodyRefused(413, `the request body is larger than ${limit} bytes, the most that is read into memory`,
    'the setting `maxBody` of the function raises it; read as a stream, `req` takes any size');
}

/** The body has more values than fit into memory after parsing. */
function tooManyValues(limit) {
  return new BodyRefused(413, `the request body holds more than ${limit} JSON values, the most that this function's memory bears`,
    'the setting `memory` of the function raises it; `req.rawBody` and the stream `req` have the bytes');
}

function tooManyFields(limit) {
  return new BodyRefused(413, `the form has more than ${limit} fields`, '`req.rawBody` and the stream `req` have the bytes');
}

/** The body does not match its head. */
function malformed(err) {
  return new BodyRefused(400, err.message);
}

function unsupported(what, name) {
  return new BodyRefused(415, `unsupported ${what} "${name}"`);
}

module.exports = { BodyRefused, tooLarge, tooManyValues, tooManyFields, malformed, unsupported };
