'use strict';
// The listener's own settings: no timer cuts a call, idle connections stay.

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { callServer } = require('../lib/server.js');

const target = { func() {}, signature: 'express', parseBody: true };
const settings = (onSocket) => {
  const { timeout, requestTimeout, headersTimeout, keepAliveTimeout } = callServer({}, { root: '/', bodyLimit: 1 }, target, { onSocket });
  return { timeout, requestTimeout, headersTimeout, keepAliveTimeout };
};

test('a unix socket has no timers', () => {
  assert.deepEqual(settings(true), { timeout: 0, requestTimeout: 0, headersTimeout: 0, keepAliveTimeout: 0 });
});

test('on TCP only heads and idle connections have a limit', () => {
  assert.deepEqual(settings(false), { timeout: 0, requestTimeout: 0, headersTimeout: 60_000, keepAliveTimeout: 75_000 });
});
