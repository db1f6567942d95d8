'use strict';
// The parameters of a function, as its source has them. Who calls: `lambda.js`, to know whether a handler can call back, and
// `../inspect/helper.js`.

/** Without nested lists and patterns being taken apart; and what comes behind. */
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
