'use strict';
// AWS Lambda's contract: a proxy event of version 2 in, a result out. `(event, context)` that returns or
// rejects, and `(event, context, callback)`. The shapes are AWS's own, so that code moves either way.

const { answerBadBody } = require('../answer.js');
const { hasBody } = require('../body.js');

const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];
/** Bodies of these types reach the function as text, all others in base64. */
const TEXTUAL = /^(text\/|application\/(json|javascript|xml|x-www-form-urlencoded)\b)|\+(json|xml)\b/i;

function adapt(instance, spec, { func }) {
  const memoryMiB = String(Math.floor(process.constrainedMemory() / 1024 / 1024));
  const handle = async (call) => {
    const bytes = await bytesOf(call, spec.bodyLimit);
    if (bytes === null) return;
    const result = await invoke(func, eventOf(call, bytes), contextOf(call, spec, memoryMiB));
    answer(call.res, result);
  };
  return { handle };
}

/** The whole body; null when the caller already has its answer, or is gone. */
async function bytesOf(call, limit) {
  const { req, res } = call;
  if (!hasBody(req)) return Buffer.alloc(0);
  const chunks = [];
  let size = 0;
  try {
    for await (const chunk of req.iterator({ destroyOnReturn: false })) {
      size += chunk.length;
      if (size > limit) {
        req.resume();
        answerBadBody(res, call, { status: 413 }, limit);
        return null;
      }
      chunks.push(chunk);
    }
  } catch {
    return null; // the caller hung up while sending
  }
  return Buffer.concat(chunks);
}

function invoke(func, event, context) {
  return new Promise((resolve, reject) => {
    const callback = (err, result) => (err ? reject(err) : resolve(result));
    Object.assign(context, {
      done: callback,
      succeed: resolve,
      fail: (err) => reject(err ?? new Error('context.fail() was called')),
    });
    const returned = func(event, context, callback);
    // A handler that takes a callback and returns nothing to wait for answers through the callback.
    if (typeof returned?.then === 'function' || func.length < 3) resolve(returned);
  });
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
    if (value !== undefined && value !== null) res.setHeader(name, Array.isArray(value) ? value.map(String) : String(value));
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
