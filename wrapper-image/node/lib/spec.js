'use strict';
// What to run: the object in `EPSILON_FUNCTION` and `POST /init`, validated. The builder and the
// agent have validated it before; this is the last check, so wrong types are reported and never
// guessed.

const SIGNATURES = ['auto', 'express', 'lambda', 'fetch'];
/** Versions of AWS Lambda's events. */
const EVENTS = ['v1', 'v2'];
/**
 * Default size limit of one body in memory, inflated; the agent and images always set it.
 * The default fits an instance of 256 MiB.
 */
const BODY_LIMIT_BYTES = 4 * 1024 * 1024;

/** The message contains the key. */
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
