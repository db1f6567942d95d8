'use strict';
// What to run: the object of `EPSILON_FUNCTION` and of `POST /init`, checked. The builder and the agent
// have checked it before; this is the last border, so wrong types are named and not guessed at.

const SIGNATURES = ['auto', 'express', 'lambda', 'fetch'];
/** Of AWS Lambda's events. */
const EVENTS = ['v1', 'v2'];
/**
 * Most that is read into memory for one body, inflated, where nothing else is said; the agent and images always say it.
 * What an instance of 256 MiB bears, by default.
 */
const BODY_LIMIT_BYTES = 4 * 1024 * 1024;

/** The message names the key. */
class InvalidSpec extends Error {}

function parseSpec(raw) {
  check(raw !== null && typeof raw === 'object' && !Array.isArray(raw), 'the function must be an object');
  const {
    function: name, entry, export: exported, signature = 'auto', event = 'v2', timeout_ms = 60_000,
    root = process.cwd(), env = {}, version = 0, body_limit_bytes = BODY_LIMIT_BYTES,
  } = raw;
  const text = (value, key) => check(typeof value === 'string' && value !== '', `\`${key}\` must be a text`);
  text(name, 'function');
  text(entry, 'entry');
  text(exported, 'export');
  text(root, 'root');
  check(SIGNATURES.includes(signature), `\`signature\` must be one of ${SIGNATURES.join(', ')}`);
  check(EVENTS.includes(event), `\`event\` must be one of ${EVENTS.join(', ')}`);
  check(timeout_ms > 0, '`timeout_ms` must be a number above 0');
  check(body_limit_bytes > 0, '`body_limit_bytes` must be a number above 0');
  check(env !== null && Object.values(env).every((value) => typeof value === 'string'), '`env` must hold texts');
  return {
    function: name, entry, export: exported, signature, event, root, env, version,
    timeoutMs: timeout_ms, bodyLimit: body_limit_bytes,
  };
}

function check(holds, message) {
  if (!holds) throw new InvalidSpec(message);
}

module.exports = { parseSpec, InvalidSpec, BODY_LIMIT_BYTES };
