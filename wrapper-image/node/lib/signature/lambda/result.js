'use strict';
// What a Lambda handler gives back, made an answer.

/** What is said by how the answer is sent; a result that states another length, or a coding of transfer, is not believed. */
const OURS = new Set(['content-length', 'transfer-encoding', 'connection', 'keep-alive']);

/** A result without `statusCode` is itself the body, as JSON unless it is a text. */
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

/** Status, headers and cookies, of a result or of what `HttpResponseStream.from` gets. */
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
