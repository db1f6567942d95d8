'use strict';
// AWS Lambda's contract: a proxy event in, a result out. `(event, context)` that returns or
// rejects, `(event, context, callback)`, and `context.succeed`, `done` and `fail`. The shapes are AWS's own, so that code
// moves either way. Handlers that stream their answer are in `lambda/stream.js`.

const { hasBody } = require('../body/kind.js');
const { BodyMemory } = require('../body/memory.js');
const { ReadAhead } = require('../body/read-ahead.js');
const { eventMaker } = require('./lambda/event.js');
const { answer } = require('./lambda/result.js');
const { isStreaming, invokeStreaming } = require('./lambda/stream.js');

const NO_BYTES = Buffer.alloc(0);
/**
 * Source of functions that can reach the callback or the context: more parameters than one (with a default, `length` does
 * not count them), `arguments`, and what is bound or wrapped so that its source is not there.
 */
const REACHES_CALLBACK = /^[^(=]*\([^)]*(,|=|\.\.\.)|\barguments\b|\[native code\]/;

function adapt(instance, spec, { func, config }) {
  const eventOf = eventMaker(config ?? undefined);
  const streams = isStreaming(func);
  const mayCallBack = func.length > 1 || REACHES_CALLBACK.test(Function.prototype.toString.call(func));
  const memoryMiB = String(Math.floor(process.constrainedMemory() / 1024 / 1024));
  const memory = new BodyMemory(spec.bodyLimit);
  const handle = async (call) => {
    let bytes = NO_BYTES;
    if (hasBody(call.req)) {
      call.body = new ReadAhead(call.req, 'raw', memory);
      if (!(await call.body.begin())) return; // the caller hung up while sending
      bytes = call.body.bytes();
    }
    const event = eventOf(call, bytes);
    const context = contextOf(call, spec, memoryMiB);
    if (streams) await invokeStreaming(call, func, event, context);
    else answer(call.res, await invoke(call, func, mayCallBack, event, context));
  };
  return { handle };
}

function invoke(call, func, mayCallBack, event, context) {
  return new Promise((resolve, reject) => {
    let returned;
    let isAnswered = false;
    // A handler that answers through the callback and goes on has not settled.
    const answers = (settle) => (value) => {
      if (!isAnswered && typeof returned?.then === 'function') call.waitUntil(returned);
      isAnswered = true;
      settle(value);
    };
    const [succeed, fail] = [answers(resolve), answers(reject)];
    const callback = (err, result) => (err ? fail(err) : succeed(result));
    Object.assign(context, {
      done: callback,
      succeed,
      fail: (err) => fail(err ?? new Error('context.fail() was called')),
    });
    returned = func(event, context, callback);
    const isPending = typeof returned?.then === 'function';
    if (isAnswered && isPending) call.waitUntil(returned);
    else if (isPending || !mayCallBack || (func.length < 3 && isResult(returned))) resolve(returned);
    // It answers later, through the callback or the context.
    else if (!isAnswered) call.warnIfSilent('is a `callback()` missing?');
  });
}

/** Data, and not what an arrow function gives back of the call that it starts, such as a timer or a query. */
function isResult(returned) {
  if (returned === undefined || typeof returned === 'function') return false;
  if (returned === null || typeof returned !== 'object' || returned.statusCode !== undefined) return true;
  const kind = Object.getPrototypeOf(returned);
  return kind === Object.prototype || kind === Array.prototype || kind === null;
}

function contextOf(call, spec, memoryLimitInMB) {
  return {
    functionName: spec.function,
    functionVersion: String(spec.version || '$LATEST'),
    invokedFunctionArn: `arn:epsilon:function:${spec.function}`,
    memoryLimitInMB,
    awsRequestId: call.id,
    logGroupName: `/epsilon/${spec.function}`,
    logStreamName: call.id,
    callbackWaitsForEmptyEventLoop: true,
    getRemainingTimeInMillis: () => Math.floor(call.remainingMs()),
  };
}

module.exports = { adapt };
