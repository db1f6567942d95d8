'use strict';
// The responses that the wrapper sends instead of the function. Their bodies have the platform's
// error format (`{"error":{type,code,message,hint,request_id}}`); a gateway in front may replace
// them.

const { STATUS_CODES } = require('node:http');

/** Header that reports to the agent that the function failed before it responded. */
const OUTCOME_HEADER = 'x-epsilon-outcome';

function answerFunctionError(res, call) {
  answer(res, 500, { [OUTCOME_HEADER]: 'threw' }, {
    type: 'function',
    code: 'FUNCTION_ERROR',
    message: `\`${call.functionName}\` threw an error`,
    hint: `\`epsilon logs ${call.functionName}\` shows why`,
    request_id: call.id,
  });
}

/**
 * As in Express 5, the status of an error becomes the status of the response. The error's message is sent only if it is meant for
 * the caller (`expose`, as set by http-errors): errors of service clients also have a status, and their messages contain accounts and
 * keys. Such a response does not have the outcome "threw", which the agent replaces with a 500.
 */
function answerThrown(res, call, err) {
  const status = statusOf(err);
  if (status === undefined || status === 500) return answerFunctionError(res, call);
  const isForCaller = err.expose === true && typeof err.message === 'string' && err.message !== '';
  answer(res, status, {}, {
    type: 'function',
    code: 'FUNCTION_ERROR',
    message: isForCaller ? err.message : (STATUS_CODES[status] ?? `\`${call.functionName}\` answered with an error`),
    hint: isForCaller ? null : `\`epsilon logs ${call.functionName}\` shows why`,
    request_id: call.id,
  });
}

/** @returns {number | undefined} `status` or `statusCode` of the thrown value, if it is an error status */
function statusOf(err) {
  return [err?.status, err?.statusCode].find((status) => Number.isInteger(status) && status >= 400 && status < 600);
}

/** Responds when the caller's body is refused. @param {import('./body/refused.js').BodyRefused} refused */
function answerRefusedBody(res, call, { status, message, hint }) {
  const isTooLarge = status === 413;
  // Keep the connection open: closing it during an upload would lose the response too. Node reads
  // and discards the rest of the body.
  answer(res, status, {}, {
    type: isTooLarge ? 'limit' : 'invalid_request',
    code: isTooLarge ? 'BODY_TOO_LARGE' : 'BAD_REQUEST',
    message,
    hint,
    request_id: call.id,
  });
}

/** Replaces what the function had prepared; the head must not have been sent yet. */
function answer(res, status, headers, error) {
  for (const name of res.getHeaderNames()) res.removeHeader(name);
  const body = JSON.stringify({ error });
  res.statusMessage = undefined;
  res.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body), ...headers });
  res.end(body);
}

module.exports = { answer, answerFunctionError, answerThrown, answerRefusedBody, statusOf, OUTCOME_HEADER };
