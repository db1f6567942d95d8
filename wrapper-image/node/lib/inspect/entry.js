'use strict';
// The child process of `inspect.js`: loads one entry and writes what it exports and reaches to fd 3.

const fs = require('node:fs');
const { registerHooks } = require('node:module');
const path = require('node:path');
const { fileURLToPath } = require('node:url');
const { signatureOf } = require('../exports.js');
const { loadFunctions } = require('../load.js');
const { describe, withoutOurs } = require('../log.js');
const { reach } = require('./reach.js');

const RESULT_FD = 3;

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
    exports = listed(await Promise.race([loadFunctions(root, entry), strayFault()]));
  } catch (err) {
    error = { message: withoutOurs(err?.message ?? String(err)), stack: describe(err) };
  }
  return { entry, error, exports, ...reach(root, loaded) };
}

/** Rejections and exceptions outside of the load's own stack fail it too. */
function strayFault() {
  return new Promise((_, reject) => {
    process.on('uncaughtException', reject);
    process.on('unhandledRejection', reject);
  });
}

function listed(functions) {
  return [...functions].map(([name, target]) => ({
    name,
    signature: signatureOf(name, target),
    config: plain(name, target.config),
  }));
}

/** `config` has to survive as data; a function in it would get lost without a word. */
function plain(name, config) {
  if (config === undefined || config === null) return null;
  const refuse = (key) => {
    throw new Error(`\`config\` of \`${name}\` holds something at \`${key}\` that is not plain data`);
  };
  return JSON.parse(JSON.stringify(config, (key, value) => {
    if (['function', 'symbol', 'bigint'].includes(typeof value)) refuse(key);
    return value;
  }));
}

inspect(process.cwd(), process.argv[2]).then((result) => {
  fs.writeSync(RESULT_FD, JSON.stringify(result));
  process.exit(0); // whatever the code left running
});
