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

/** The caller's body cannot be read: too large, cut, or not what its headers say. */
function answerBadBody(res, call, err, limit) {
  const tooLarge = err.status === 413;
  answer(res, err.status ?? 400, { connection: 'close' }, {
    type: tooLarge ? 'limit' : 'invalid_request',
    code: tooLarge ? 'BODY_TOO_LARGE' : 'BAD_REQUEST',
    message: tooLarge ? `the request body is larger than ${limit} bytes, the most that is read at once` : err.message,
    hint: tooLarge ? 'a function with `parseBody: false` takes its body as a stream of any size' : null,
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

module.exports = { answer, answerFunctionError, answerBadBody, OUTCOME_HEADER };
