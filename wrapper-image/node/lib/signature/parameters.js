'use strict';
// The parameters of a function, from its source. Used by `lambda.js`, to decide whether a handler
// can call back, and by `../inspect/helper.js`.

/** Nested lists and patterns are not parsed. Also returns the rest of the source. */
function parametersOf(source) {
  const arrow = /^\s*(async\s+)?([\w$]+)\s*=>/.exec(source);
  if (arrow) return { parameters: [arrow[2]], rest: source.slice(arrow[0].length) };
  const parameters = [''];
  let depth = 0;
  for (let at = source.indexOf('('); at >= 0 && at < source.length; at++) {
    const char = source[at];
    if (')]}'.includes(char) && --depth === 0) {
      return { parameters: parameters.map((text) => text.trim()).filter(Boolean), rest: source.slice(at + 1) };
    }
    if (char === ',' && depth === 1) parameters.push('');
    else if (depth > 0) parameters[parameters.length - 1] += char;
    if ('([{'.includes(char)) depth++;
  }
  return { parameters: [], rest: '' };
}

module.exports = { parametersOf };
