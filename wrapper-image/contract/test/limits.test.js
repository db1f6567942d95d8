'use strict';
// `body_limit_bytes`: a larger body is refused where the code reads it whole, and only there.

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { ready } = require('../support/fixtures.js');

const LIMIT = { body_limit_bytes: 1000 };
const post = (path, body) => ({ method: 'POST', path, body, headers: { 'content-type': 'text/plain', 'x-epsilon-request-id': 'limit-0001' } });

test('a body within the limit is read', async (t) => {
  const f = await ready(t, 'limits', LIMIT);
  assert.equal((await f.call(post('/reads', 'x'.repeat(1000)))).body, '1000');
});

for (const [what, body] of [
  ['a body over the limit', 'x'.repeat(2000)],
  ['a chunked body over the limit', (req) => { req.write('x'.repeat(900)); req.end('x'.repeat(900)); }],
]) {
  test(`${what} is refused only when code reads it`, async (t) => {
    const f = await ready(t, 'limits', LIMIT);
    assert.equal((await f.call(post('/', body))).body, 'unread');
    const answer = await f.call(post('/reads', body));
    const { error } = JSON.parse(answer.body);
    assert.deepEqual([answer.status, error.code, error.request_id], [413, 'BODY_TOO_LARGE', 'limit-0001']);
    assert.equal(answer.headers['x-epsilon-outcome'], undefined);
    assert.match(error.hint, /maxBody/);
    assert.equal((await f.call(post('/reads', 'small'))).body, '5');
  });
}
