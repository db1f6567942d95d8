'use strict';
// Lambda's response streaming: the global `awslambda`, with which a handler declares that it writes
// its response to a stream, and that stream. As in AWS's runtime, `awslambda.streamifyResponse`
// only marks the handler.

const { Writable } = require('node:stream');
const { setHead } = require('./result.js');

/** The symbol of AWS's own runtime, which handler wrappers look for and copy. */
const STREAMING = Symbol.for('aws.lambda.runtime.handler.streaming');
/** AWS's default content type. */
const DEFAULT_TYPE = 'application/octet-stream';

const awslambda = {
  /** @param {(event: object, stream: Writable, context: object) => Promise<void>} handler */
  streamifyResponse(handler) {
    handler[STREAMING] = 'response';
    return handler;
  },
  HttpResponseStream: class HttpResponseStream {
    /** Sets the head of a response before anything was written. */
    static from(stream, metadata) {
      stream.setMetadata(metadata);
      return stream;
    }
  },
};

/** Must run before project code is loaded, which uses the global at its top level. */
function provideGlobal() {
  globalThis.awslambda ??= awslambda;
}

function isStreaming(func) {
  return func[STREAMING] === 'response';
}

/** The body of a response, with backpressure from its reader. */
class ResponseStream extends Writable {
  #res;

  constructor(call) {
    super({ decodeStrings: false });
    this.#res = call.res;
    this.on('error', (err) => call.fail(err));
    call.res.once('close', () => this.destroy()); // pending and later writes fail
  }

  setContentType(type) {
    this.#res.setHeader('content-type', type);
  }

  setMetadata({ statusCode = 200, ...rest } = {}) {
    setHead(this.#res, { statusCode, ...rest });
  }

  _write(chunk, encoding, done) {
    this.#begin();
    if (this.#res.write(chunk, encoding)) done();
    else this.#res.once('drain', done);
  }

  _final(done) {
    this.#begin();
    this.#res.end();
    done();
  }

  /** After an error before the head, the caller can still get a 500. */
  _destroy(err, done) {
    if (!this.#res.writableEnded && (this.#res.headersSent || !err)) this.#res.destroy();
    done(err);
  }

  #begin() {
    if (!this.#res.headersSent && !this.#res.hasHeader('content-type')) this.setContentType(DEFAULT_TYPE);
  }
}

/** Runs a handler that writes its response; its return value is ignored. */
async function invokeStreaming(call, func, event, context) {
  const stream = new ResponseStream(call);
  try {
    await func(event, stream, context);
  } catch (err) {
    // The stream's own listener has reported it, or the caller disconnected, which is no error.
    const isLeft = call.res.destroyed && err?.code === 'ERR_STREAM_PREMATURE_CLOSE';
    if (err !== stream.errored && !isLeft) throw err;
  }
}

module.exports = { provideGlobal, isStreaming, invokeStreaming };
