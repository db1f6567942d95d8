'use strict';
// AWS Lambda's contract: a proxy event of version 2 in, a result out. `(event, context)` that returns or
// rejects, `(event, context, callback)`, and `context.succeed`, `done` and `fail`. The shapes are AWS's own, so that code
// moves either way.

const { hasBody } = require('../body/kind.js');
const { BodyMemory } = require('../body/memory.js');
const { ReadAhead } = require('../body/read-ahead.js');

/** What is said by how the answer is sent; a result that states another length, or a coding of transfer, is not believed. */
const OURS = new Set(['content-length', 'transfer-encoding', 'connection', 'keep-alive']);
const NO_BYTES = Buffer.alloc(0);
const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];
/** Bodies of these types reach the function as text, all others in base64. */
const TEXTUAL = /^(text\/|application\/(json|javascript|xml|x-www-form-urlencoded)\b)|\+(json|xml)\b/i;
/**
 * Source of functions that can reach the callback or the context: more parameters than one (with a default, `length` does
 * not count them), `arguments`, and what is bound or wrapped so that its source is not there.
 */
const REACHES_CALLBACK = /^[^(=]*\([^)]*(,|=|\.\.\.)|\barguments\b|\[native code\]/;

function adapt(instance, spec, { func }) {
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
    const result = await invoke(call, func, mayCallBack, eventOf(call, bytes), contextOf(call, spec, memoryMiB));
    answer(call.res, result);
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

function eventOf({ req, id }, bytes) {
  const [rawPath, rawQueryString] = split(req.url, '?');
  const { cookie, ...headers } = req.headers;
  for (const [name, value] of Object.entries(headers)) if (Array.isArray(value)) headers[name] = value.join(',');
  const isText = TEXTUAL.test(headers['content-type'] ?? '') && headers['content-encoding'] === undefined;
  const host = headers.host ?? '';
  const now = new Date();
  return {
    version: '2.0',
    routeKey: '$default',
    rawPath,
    rawQueryString,
    ...(cookie !== undefined && { cookies: cookie.split(/; */) }),
    headers,
    ...(rawQueryString !== '' && { queryStringParameters: queryOf(rawQueryString) }),
    requestContext: {
      accountId: 'anonymous',
      apiId: 'epsilon',
      domainName: host,
      domainPrefix: split(host, '.')[0],
      http: {
        method: req.method,
        path: rawPath,
        protocol: `HTTP/${req.httpVersion}`,
        sourceIp: split(headers['x-forwarded-for'] ?? req.socket.remoteAddress ?? '', ',')[0],
        userAgent: headers['user-agent'] ?? '',
      },
      requestId: id,
      routeKey: '$default',
      stage: '$default',
      time: clfTime(now),
      timeEpoch: now.getTime(),
    },
    ...(bytes.length > 0 && { body: bytes.toString(isText ? 'utf8' : 'base64') }),
    isBase64Encoded: bytes.length > 0 && !isText,
  };
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

/** A result without `statusCode` is itself the body, as JSON unless it is a text. */
function answer(res, result) {
  if (result === null || typeof result !== 'object' || result.statusCode === undefined) {
    res.setHeader('content-type', 'application/json');
    res.end(typeof result === 'string' ? result : JSON.stringify(result ?? null));
    return;
  }
  const { headers, multiValueHeaders, cookies, body, isBase64Encoded } = result;
  const status = Number(result.statusCode);
  if (!Number.isInteger(status)) throw new TypeError(`\`statusCode\` is ${result.statusCode}, not a number`);
  res.statusCode = status;
  for (const [name, value] of Object.entries({ ...headers, ...multiValueHeaders })) {
    if (value !== undefined && value !== null && !OURS.has(name.toLowerCase())) res.setHeader(name, Array.isArray(value) ? value.map(String) : String(value));
  }
  if (cookies?.length) res.appendHeader('set-cookie', cookies);
  if (!res.hasHeader('content-type')) res.setHeader('content-type', 'application/json');
  if (body === undefined || body === null) res.end();
  else if (typeof body !== 'string') res.end(JSON.stringify(body));
  else res.end(isBase64Encoded ? Buffer.from(body, 'base64') : body);
}

function queryOf(raw) {
  const query = {};
  for (const [name, value] of new URLSearchParams(raw)) {
    query[name] = Object.hasOwn(query, name) ? `${query[name]},${value}` : value;
  }
  return query;
}

/** `12/Mar/2020:19:03:58 +0000` */
function clfTime(date) {
  const two = (number) => String(number).padStart(2, '0');
  const day = `${two(date.getUTCDate())}/${MONTHS[date.getUTCMonth()]}/${date.getUTCFullYear()}`;
  return `${day}:${date.toISOString().slice(11, 19)} +0000`;
}

/** Both sides of the first separator; the second is empty without one. */
function split(text, separator) {
  const at = text.indexOf(separator);
  return at === -1 ? [text, ''] : [text.slice(0, at), text.slice(at + 1)];
}

module.exports = { adapt };
