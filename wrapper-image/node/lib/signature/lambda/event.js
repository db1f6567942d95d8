'use strict';
// The event that a Lambda handler gets: API Gateway's proxy event of version 2, made of the request and its body.

const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];
/** Bodies of these types reach the function as text, all others in base64. */
const TEXTUAL = /^(text\/|application\/(json|javascript|xml|x-www-form-urlencoded)\b)|\+(json|xml)\b/i;

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

module.exports = { eventOf };
