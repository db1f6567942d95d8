'use strict';
// Converts the result of a Lambda handler into a response.

/** Headers that Node sets itself; a length or transfer coding stated in a result is ignored. */
const OURS = new Set(['content-length', 'transfer-encoding', 'connection', 'keep-alive']);

/** A result without `statusCode` is the body, as JSON unless it is a string. */
function answer(res, result) {
  if (result === null || typeof result !== 'object' || result.statusCode === undefined) {
    res.setHeader('content-type', 'application/json');
    res.end(typeof result === 'string' ? result : JSON.stringify(result ?? null));
    return;
  }
  setHead(res, result);
  const { body, isBase64Encoded } = result;
  if (!res.hasHeader('content-type')) res.setHeader('content-type', 'application/json');
  if (body === undefined || body === null) res.end();
  else if (typeof body !== 'string') res.end(JSON.stringify(body));
  else res.end(isBase64Encoded ? Buffer.from(body, 'base64') : body);
}

/** Sets status, headers and cookies from a result or from the argument of `HttpResponseStream.from`. */
function setHead(res, { statusCode, headers, multiValueHeaders, cookies }) {
  const status = Number(statusCode);
  if (!Number.isInteger(status)) throw new TypeError(`\`statusCode\` is ${statusCode}, not a number`);
  res.statusCode = status;
  for (const [name, value] of Object.entries({ ...headers, ...multiValueHeaders })) {
    if (value !== undefined && value !== null && !OURS.has(name.toLowerCase())) res.setHeader(name, Array.isArray(value) ? value.map(String) : String(value));
  }
  if (cookies?.length) res.appendHeader('set-cookie', cookies);
}

module.exports = { answer, setHead };
