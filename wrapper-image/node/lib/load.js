'use strict';
// Loads a file of the project and finds the function in it. ES modules, CommonJS and TypeScript (by Node's
// own type stripping) alike. Called by `instance.js` and by `inspect.js`.

const fs = require('node:fs');
const path = require('node:path');
const { setImmediate: nextTurn } = require('node:timers/promises');
const { pathToFileURL } = require('node:url');
const { isPromise } = require('node:util').types;
const { functionsOf, signatureOf } = require('./exports.js');
const { provideGlobal } = require('./signature/lambda/stream.js');

/** The module's functions by name, one turn after loading: an unawaited rejection is only known then. */
async function loadFunctions(root, entry) {
  const file = path.resolve(root, entry);
  if (!fs.existsSync(file)) throw new Error(`\`${entry}\` does not exist`);
  provideGlobal();
  let exported = requireOrImport(file);
  // Checked instead of just awaited: an object that has every name also has a `then`.
  if (isPromise(exported)) exported = await exported;
  await nextTurn();
  return functionsOf(exported);
}

function requireOrImport(file) {
  try {
    return require(file); // also loads ES modules, synchronously
  } catch (err) {
    if (err?.code !== 'ERR_REQUIRE_ASYNC_MODULE') throw err;
    return import(pathToFileURL(file)); // it has a top-level await
  }
}

/** The function that a spec names, with its signature determined. */
async function loadFunction(spec) {
  const found = await loadFunctions(spec.root, spec.entry);
  const target = found.get(spec.export);
  if (!target) {
    const names = [...found.keys()].map((name) => `\`${name}\``).join(', ') || 'no function';
    throw new Error(`\`${spec.entry}\` exports no function \`${spec.export}\`; it exports ${names}`);
  }
  return { ...target, signature: spec.signature === 'auto' ? signatureOf(spec.export, target) : spec.signature };
}

module.exports = { loadFunctions, loadFunction };
