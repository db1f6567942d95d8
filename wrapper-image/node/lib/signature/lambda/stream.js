'use strict';
// Lambda's response streaming: the global `awslambda`, by which a handler says that it writes its answer into a stream,
// and that stream. As in AWS's runtime, `awslambda.streamifyResponse` only marks the handler.

const { Writable } = require('node:stream');
const { setHead } = require('./result.js');

/** The mark of AWS's own runtime, which wrappers of handlers look for and hand on. */
const STREAMING = Symbol.for('aws.lambda.runtime.handler.streaming');
/** As AWS answers where nothing else is said. */
const DEFAULT_TYPE = 'application/octet-stream';

const awslambda = {
  /** @param {(event: object, stream: Writable, context: object) => Promise<void>} handler */
  streamifyResponse(handler) {
    handler[STREAMING] = 'response';
    return handler;
  },
  HttpResponseStream: class HttpResponseStream {
    /** Sets the head of an answer of which nothing was written yet. */
    static from(stream, metadata) {
      stream.setMetadata(metadata);
      return stream;
    }
  },
};

/** Before any code of the project is loaded: it uses the global at its top level. */
function provideGlobal() {
  globalThis.awslambda ??= awslambda;
}

function isStreaming(func) {
  return func[STREAMING] === 'response';
}

/** The body of an answer, at the pace of its reader. */
class ResponseStream extends Writable {
  #res;

  constructor(call) {
    super({ decodeStrings: false });
    this.#res = call.res;
    this.on('error', (err) => call.fail(err));
    call.res.once('close', () => this.destroy()); // who writes on, or waits for a reader, hears of it
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

/** Runs a handler that writes its answer; what it returns is nothing. */
async function invokeStreaming(call, func, event, context) {
  const stream = new ResponseStream(call);
  try {
    await func(event, stream, context);
  } catch (err) {
    // The stream's own listener has reported it, or the caller left and nothing is wrong.
    const isLeft = call.res.destroyed && err?.code === 'ERR_STREAM_PREMATURE_CLOSE';
    if (err !== stream.errored && !isLeft) throw err;
  }
}

module.exports = { provideGlobal, isStreaming, invokeStreaming };
