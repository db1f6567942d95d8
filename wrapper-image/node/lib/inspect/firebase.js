'use strict';
// Reads what functions of the package `firebase-functions` declare in their `__endpoint`: options,
// which become our settings, and triggers. Only functions with HTTP triggers are served; the others
// are refused by name, because as Express functions each of them would be a public address.

/** Option, setting, and conversion of the value. */
const SETTINGS = [
  ['availableMemoryMb', 'memory', (mebibytes) => `${mebibytes}MiB`],
  ['timeoutSeconds', 'timeout', (seconds) => `${seconds}s`],
  ['cpu', 'cpu', Number],
  ['concurrency', 'concurrency', Number],
  ['minInstances', 'minInstances', Number],
  ['maxInstances', 'maxInstances', Number],
];
/** Trigger, and its description in error messages. */
const REFUSED = [
  ['scheduleTrigger', 'a scheduled function', 'let a scheduler of your own call an `onRequest` function'],
  ['eventTrigger', 'a function for events', 'let what knows of the event call an `onRequest` function'],
  ['taskQueueTrigger', 'a function for task queues', 'let a queue of your own call an `onRequest` function'],
  ['blockingTrigger', 'a blocking function', 'there is no Identity Platform here that would call it'],
];
const EVERYONE = 'public';
/** Values of `ingressSettings` that restrict access. */
const INTERNAL = ['ALLOW_INTERNAL_ONLY', 'ALLOW_INTERNAL_AND_GCLB'];

/**
 * @param {Function} func
 * @returns {object} empty for any other function
 */
function firebaseSettings(name, func) {
  const endpoint = '__endpoint' in func ? endpointOf(name, func) : undefined;
  if (typeof endpoint?.platform !== 'string') return {};
  for (const [trigger, what, instead] of REFUSED) {
    if (!endpoint[trigger]) continue;
    throw new Error(`\`${name}\` is ${what} of firebase-functions${detail(endpoint[trigger])}; only HTTP functions are served: ${instead}`);
  }
  const invokers = endpoint.httpsTrigger?.invoker;
  if (Array.isArray(invokers) && !invokers.includes(EVERYONE)) {
    throw new Error(`\`${name}\` has \`invoker: ${invokers.join()}\` of firebase-functions, but every function is public here: `
      + 'leave it out, and check in the code who calls');
  }
  if (INTERNAL.includes(endpoint.ingressSettings)) {
    throw new Error(`\`${name}\` has \`ingressSettings: ${endpoint.ingressSettings}\` of firebase-functions, but every function is public here: `
      + 'leave it out, and check in the code who calls');
  }
  const settings = {};
  for (const [option, setting, written] of SETTINGS) {
    const value = endpoint[option];
    if (typeof value?.toCEL === 'function') {
      throw new Error(`\`${setting}\` of \`${name}\` is a parameter of firebase-functions, which has no value yet: write a number`);
    }
    if (typeof value === 'number') settings[setting] = written(value); // otherwise it is a placeholder for the default
  }
  return settings;
}

/** Some event triggers read the project name first, and throw without it. */
function endpointOf(name, func) {
  try {
    return func.__endpoint;
  } catch (err) {
    throw new Error(`\`${name}\` of firebase-functions does not say what starts it (${err?.message}); only HTTP functions are served`);
  }
}

function detail({ schedule, eventType }) {
  const trigger = schedule ?? eventType;
  return typeof trigger === 'string' ? ` (\`${trigger}\`)` : '';
}

module.exports = { firebaseSettings };
