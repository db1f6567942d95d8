'use strict';
// Detects exported functions that look like helpers rather than handlers. Every exported function
// is a public address, so the deployment lists those. A heuristic on the source, only used in
// messages; in doubt the function is a handler.

const { parametersOf } = require('../signature/parameters.js');

/** Usual names of handler parameters; patterns and rest parameters could be anything. */
const OF_A_CALL = /^[[{.]|req|res|reply|event|evt|ctx|context|message|input|^(e|c|r|_\w*)$/i;
/** Code that is typical for handlers and rare in helpers; or there is no source. */
const ANSWERS = /\.\s*(send|sendStatus|json|end|status|writeHead|redirect|render|pipe|pipeTo)\s*\(|\bResponse\b|\bstatusCode\b|\barguments\b|\[native code\]/;
const TEXT_MAX = 60;

/**
 * @param {import('../exports.js').Target} target
 * @returns {string | undefined} its parameters if it looks like a helper: `(a, b)`
 */
function helperParameters({ func, bare, app, fetch }) {
  if (!bare || app || fetch || '__endpoint' in func) return undefined;
  const source = Function.prototype.toString.call(func);
  if (ANSWERS.test(source)) return undefined;
  const { parameters } = parametersOf(source);
  if (parameters.some((parameter) => OF_A_CALL.test(parameter.replace(/\s*=[^]*$/, '')))) return undefined;
  const text = `(${parameters.join(', ')})`.replace(/\s+/g, ' ');
  return text.length > TEXT_MAX ? `${text.slice(0, TEXT_MAX)}…` : text;
}

module.exports = { helperParameters };
