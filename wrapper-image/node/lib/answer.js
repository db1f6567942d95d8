'use strict';
// The answers that the wrapper gives in place of the function. Their bodies have the platform's form
// (`{"error":{type,code,message,hint,request_id}}`); a gateway in front may replace them.

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

module.exports = { answer, answerFunctionError, answerRefusedBody, OUTCOME_HEADER };
