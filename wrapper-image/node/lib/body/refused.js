'use strict';
// Why a body is not handed to the function: what reading `req.body` throws, and what the caller gets when the
// function does not catch it (`call.js`). Names the limit that was met, and no other.

class BodyRefused extends Error {
  /** For frameworks that answer thrown errors themselves (Express, Koa, Fastify). */
  expose = true;

  constructor(status, message, hint = null) {
    super(message);
    this.name = 'BodyRefused';
    this.status = this.statusCode = status;
    this.hint = hint;
  }
}

/** The body, decompressed, has more bytes than are read into memory. */
function tooLarge(limit) {
  return new BodyRefused(413, `the request body is larger than ${limit} bytes, the most that is read into memory`,
    'the setting `maxBody` of the function raises it; read as a stream, `req` takes any size');
}

/** So many values that they would not fit into the memory once they are parsed. */
function tooManyValues(limit) {
  return new BodyRefused(413, `the request body holds more than ${limit} JSON values, the most that this function's memory bears`,
    'the setting `memory` of the function raises it; `req.rawBody` and the stream `req` have the bytes');
}

function tooManyFields(limit) {
  return new BodyRefused(413, `the form has more than ${limit} fields`, '`req.rawBody` and the stream `req` have the bytes');
}

/** Not what its head says. */
function malformed(err) {
  return new BodyRefused(400, err.message);
}

function unsupported(what, name) {
  return new BodyRefused(415, `unsupported ${what} "${name}"`);
}

module.exports = { BodyRefused, tooLarge, tooManyValues, tooManyFields, malformed, unsupported };
