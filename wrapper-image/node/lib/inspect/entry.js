'use strict';
// The child process of `inspect.js`: loads one entry and writes what it exports and reaches to fd 3.

const fs = require('node:fs');
const { registerHooks } = require('node:module');
const path = require('node:path');
const { fileURLToPath } = require('node:url');
const { signatureOf } = require('../exports.js');
const { loadFunctions } = require('../load.js');
const { describe, withoutOurs } = require('../log.js');
const { helperParameters } = require('./helper.js');
const { reach } = require('./reach.js');
const { settingsOf } = require('./settings.js');

const RESULT_FD = 3;
/** System calls that fail without network. */
const OF_NETWORK = new Set(['connect', 'getaddrinfo', 'send']);

async function inspect(root, entry) {
  const loaded = new Set([path.resolve(root, entry)]);
  registerHooks({
    resolve(specifier, context, next) {
      const found = next(specifier, context);
      if (found.url.startsWith('file:')) loaded.add(fileURLToPath(found.url));
      return found;
    },
  });
  let error = null;
  let exports = [];
  try {
    exports = listed(await Promise.race([loadFunctions(root, entry), strayFault(entry)]));
  } catch (err) {
    error = { message: withoutOurs(err?.message ?? String(err)), stack: describe(err) };
  }
  return { entry, error, exports, ...reach(root, loaded) };
}

/**
 * An exception outside of the load's own stack also fails the load. An unawaited rejection does not, nor does a failed
 * connection without an error listener: there is no network here, and whether the error appears before loading ends is random,
 * so the same code could be deployed once and refused the next time. In an instance they are faults (`../faults.js`).
 */
function strayFault(entry) {
  const report = (err) => {
    console.error(`\`${entry}\`: an error while loading that does not fail the deployment: ${withoutOurs(err?.message ?? String(err))}`);
  };
  process.on('unhandledRejection', report);
  return new Promise((_, reject) => {
    process.on('uncaughtException', (err) => (isOfNetwork(err) ? report(err) : reject(err)));
  });
}

function isOfNetwork(err) {
  return OF_NETWORK.has(err?.syscall) || (err?.errors?.length > 0 && Array.from(err.errors).every(isOfNetwork));
}

function listed(functions) {
  return [...functions].map(([name, target]) => {
    const signature = signatureOf(name, target);
    const helper = signature === 'express' && name !== 'default' ? helperParameters(target) : undefined;
    return { name, signature, config: settingsOf(name, target), ...(helper !== undefined && { helper }) };
  });
}

inspect(process.cwd(), process.argv[2]).then((result) => {
  fs.writeSync(RESULT_FD, JSON.stringify(result));
  process.exit(0); // the code may have left something running
});
