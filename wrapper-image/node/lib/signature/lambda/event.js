'use strict';
// Builds the event of a Lambda handler from the request and its body: API Gateway's proxy event of
// version 2 (HTTP APIs, function URLs), or of version 1 (REST APIs) if the function's settings
// contain `event: v1`.

const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];
/** Bodies of these types reach the function as text, all others in base64. */
const TEXTUAL = /^(text\/|application\/(json|javascript|xml|x-www-form-urlencoded)\b)|\+(json|xml)\b/i;

const EVENTS = { v1: eventOfRest, v2: eventOf };

/** Event constructors, by the version in the function's settings. */
function eventMaker(version = 'v2') {
  return EVENTS[version];
}

function eventOf({ req, id }, bytes) {
  const [rawPath, rawQueryString] = split(req.url, '?');
  const { cookie, ...headers } = req.headers;
  for (const [name, value] of Object.entries(headers)) if (Array.isArray(value)) headers[name] = value.join(',');
  const isText = isTextual(headers);
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
        sourceIp: sourceIp(req),
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

function eventOfRest({ req, id }, bytes) {
  const [path, query] = split(req.url, '?');
  const multiValueHeaders = { ...req.headersDistinct };
  const multiValueQueryStringParameters = query === '' ? null : valuesOf(query);
  const headers = lastOfEach(multiValueHeaders);
  const isText = isTextual(headers);
  const host = headers.host ?? '';
  const isRoot = path === '/';
  const resource = isRoot ? '/' : '/{proxy+}';
  const now = new Date();
  return {
    resource,
    path,
    httpMethod: req.method,
    headers,
    multiValueHeaders,
    queryStringParameters: multiValueQueryStringParameters && lastOfEach(multiValueQueryStringParameters),
    multiValueQueryStringParameters,
    pathParameters: isRoot ? null : { proxy: path.slice(1) },
    stageVariables: null,
    requestContext: {
      accountId: 'anonymous',
      apiId: 'epsilon',
      domainName: host,
      domainPrefix: split(host, '.')[0],
      extendedRequestId: id,
      httpMethod: req.method,
      identity: { sourceIp: sourceIp(req), userAgent: headers['user-agent'] ?? null },
      path,
      protocol: `HTTP/${req.httpVersion}`,
      requestId: id,
      requestTime: clfTime(now),
      requestTimeEpoch: now.getTime(),
      resourceId: '$default',
      resourcePath: resource,
      stage: '$default',
    },
    body: bytes.length > 0 ? bytes.toString(isText ? 'utf8' : 'base64') : null,
    isBase64Encoded: bytes.length > 0 && !isText,
  };
}

function isTextual(headers) {
  return TEXTUAL.test(headers['content-type'] ?? '') && headers['content-encoding'] === undefined;
}

function sourceIp({ headers, socket }) {
  return split(headers['x-forwarded-for'] ?? socket.remoteAddress ?? '', ',')[0];
}

function lastOfEach(lists) {
  return Object.fromEntries(Object.entries(lists).map(([name, values]) => [name, values.at(-1)]));
}

function valuesOf(raw) {
  const lists = {};
  for (const [name, value] of new URLSearchParams(raw)) {
    if (Object.hasOwn(lists, name)) lists[name].push(value);
    else lists[name] = [value];
  }
  return lists;
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

module.exports = { eventMaker };
