'use strict';
// AWS Lambda's contract: a proxy event in, a result out. Supports `(event, context)` that returns
// or rejects, `(event, context, callback)`, and `context.succeed`, `done` and `fail`. Events and
// results have AWS's own formats, so that code can move in both directions. Handlers that stream
// their response are in `lambda/stream.js`.

const { hasBody } = require('../body/kind.js');
const { BodyMemory } = require('../body/memory.js');
const { ReadAhead } = require('../body/read-ahead.js');
const { eventMaker } = require('./lambda/event.js');
const { answer } = require('./lambda/result.js');
const { isStreaming, invokeStreaming } = require('./lambda/stream.js');
const { parametersOf } = require('./parameters.js');

const NO_BYTES = Buffer.alloc(0);
/** Names of the functions that end a call, in a destructured context. */
const ENDS = /\b(succeed|done|fail)\b|\.\.\./;

/**
 * Whether a handler can call back after it returned: it has a third parameter or `arguments`, or uses its context for
 * that. Others that return nothing have ended when they return, as on Lambda once nothing is left to do.
 */
function canCallBack(func) {
  if (func.length > 2) return true;
  const source = Function.prototype.toString.call(func);
  if (source.includes('[native code]')) return func.length !== 1; // bound: its source is not available
  if (/\barguments\b/.test(source)) return true;
  const { parameters, rest } = parametersOf(source);
  const context = parameters[1]?.replace(/=[^]*$/, '').trim();
  if (parameters.length > 2 || parameters.some((parameter) => parameter.startsWith('...'))) return true;
  if (context === undefined) return false;
  if (!/^[\w$]+$/.test(context)) return ENDS.test(context);
  const name = context.replaceAll('$', '\\$');
  // It names a function that ends a call, or passes its context on: to a function or to another variable.
  return new RegExp(`\\b${name}\\s*\\??\\.\\s*(succeed|done|fail)\\b|[(,]\\s*${name}\\s*[,)]|=\\s*${name}\\s*[;,\\n}]`).test(rest);
}

function adapt(instance, spec, { func }) {
  const eventOf = eventMaker(spec.event);
  const streams = isStreaming(func);
  const mayCallBack = canCallBack(func);
  const memoryMiB = String(Math.floor(process.constrainedMemory() / 1024 / 1024));
  const memory = new BodyMemory(spec.bodyLimit);
  const handle = async (call) => {
    let bytes = NO_BYTES;
    if (hasBody(call.req)) {
      call.body = new ReadAhead(call.req, 'raw', memory);
      if (!(await call.body.begin())) return; // the caller disconnected while sending
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
    // A handler that responds through the callback and continues has not settled.
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
    // It responds later, through the callback or the context.
    else if (!isAnswered) call.warnIfSilent('is a `callback()` missing?');
  });
}

/** Whether the value is data, and not the return value of a call in an arrow function, such as a timer or a query. */
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
