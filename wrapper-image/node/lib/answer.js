'use strict';
// The answers that the wrapper gives in place of the function. Their bodies have the platform's form
// (`{"error":{type,code,message,hint,request_id}}`); a gateway in front may replace them.

const { STATUS_CODES } = require('node:http');

/** Tells the agent that the function failed before it answered. */
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
 * As Express 5: an error with a status is answered with it. In its own words only where it says that they are for the caller
 * (`expose`, as of http-errors): errors of clients of other services have a status too, and tell accounts and keys. That is an
 * answer and not the outcome "threw", which the agent replaces by a 500.
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

/** @returns {number | undefined} `status` or `statusCode` of what was thrown, if it is one of an error */
function statusOf(err) {
  return [err?.status, err?.statusCode].find((status) => Number.isInteger(status) && status >= 400 && status < 600);
}

/** The caller's body is not handed to the function. @param {import('./body/refused.js').BodyRefused} refused */
function answerRefusedBody(res, call, { status, message, hint }) {
  const isTooLarge = status === 413;
  // The connection stays: who closes it under an upload that still comes takes the answer away with it. Node reads the
  // rest and forgets it.
  answer(res, status, {}, {
    type: isTooLarge ? 'limit' : 'invalid_request',
    code: isTooLarge ? 'BODY_TOO_LARGE' : 'BAD_REQUEST',
    message,
    hint,
    request_id: call.id,
  });
}

/** Replaces whatever the function had prepared; the head must not have been sent. */
function answer(res, status, headers, error) {
  for (const name of res.getHeaderNames()) res.removeHeader(name);
  const body = JSON.stringify({ error });
  res.statusMessage = undefined;
  res.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body), ...headers });
  res.end(body);
}

module.exports = { answer, answerFunctionError, answerThrown, answerRefusedBody, statusOf, OUTCOME_HEADER };
