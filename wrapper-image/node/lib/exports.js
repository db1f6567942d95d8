'use strict';
// Determines which exports of a module are functions to serve, and with which signature. Pure.

const { isStreaming } = require('./signature/lambda/stream.js');

/**
 * @typedef {object} Target
 * @property {Function} func the function that is called
 * @property {boolean} bare exported directly, not inside an object
 * @property {boolean} parseBody whether bodies are read and parsed before the call
 * @property {boolean} app an application with its own request and response, such as Express's
 * @property {boolean} fetch an object with a web-standard `fetch`
 * @property {Function} [upgrade] takes WebSocket handshakes
 * @property {object} [config]
 */

/**
 * All functions of a module by export name. Own properties only: `constructor` or `__proto__` name nothing.
 *
 * @returns {Map<string, Target>}
 */
function functionsOf(exported) {
  const found = new Map();
  const whole = targetOf(exported);
  // A CommonJS module that *is* one function, application or router; its properties are not exports.
  if (whole && (whole.bare || whole.config || !isPlain(exported))) return found.set('default', whole);
  if (exported === null || typeof exported !== 'object') return found;
  for (const name of Object.keys(exported)) {
    const target = targetOf(exported[name]);
    if (target) found.set(name, target);
  }
  return found;
}

/** @returns {Target | null} null if it cannot be served */
function targetOf(value) {
  if (typeof value === 'function') {
    if (isClass(value)) return null;
    const app = typeof part(value, 'handle') === 'function' && typeof part(value, 'set') === 'function';
    return { func: value, bare: true, parseBody: !app, app, fetch: false };
  }
  if (value === null || typeof value !== 'object') return null;
  const [config, upgrade] = [part(value, 'config'), part(value, 'upgrade')];
  if (typeof part(value, 'fetch') === 'function') {
    return { func: value.fetch.bind(value), bare: false, parseBody: false, app: false, fetch: true, upgrade, config };
  }
  const inner = targetOf(part(value, 'func') ?? part(value, 'definition'));
  if (!inner?.bare) return null;
  return { ...inner, bare: false, parseBody: part(value, 'parseBody') ?? inner.parseBody, upgrade, config };
}

/** Reads existing properties only, not those that a Proxy makes up: routers such as itty's return a value for every name. */
function part(value, name) {
  return name in value ? value[name] : undefined;
}

/** Default signature of a target: a bare function named `handler`, or one that streams, uses AWS Lambda's. */
function signatureOf(name, target) {
  if (target.config?.signature) return target.config.signature;
  if (target.config?.event) return 'lambda'; // which version of its events
  if (target.fetch) return 'fetch';
  if (isStreaming(target.func)) return 'lambda';
  return name === 'handler' && target.bare && !target.app ? 'lambda' : 'express';
}

/** Whether an object is a plain collection, like `module.exports` or an ES module: not an instance of a class, not a router. */
function isPlain(value) {
  const made = Object.getPrototypeOf(value);
  return made === null || made === Object.prototype;
}

function isClass(value) {
  return Function.prototype.toString.call(value).startsWith('class');
}

module.exports = { functionsOf, signatureOf };
