'use strict';
// What an export says of itself, as the builder gets it: the `config` beside it, as plain data, and under it the options of
// `firebase-functions`. The builder checks each key.

const { firebaseSettings } = require('./firebase.js');

/** @returns {object | null} */
function settingsOf(name, { func, config }) {
  const options = firebaseSettings(name, func);
  if (config === undefined || config === null) return Object.keys(options).length > 0 ? options : null;
  const settings = plain(name, config);
  if (typeof settings !== 'object') return settings; // for the builder to refuse
  return { ...options, ...settings };
}

/** It has to survive as data; a function in it would get lost without a word. */
function plain(name, config) {
  const refuse = (key) => {
    throw new Error(`\`config\` of \`${name}\` holds something at \`${key}\` that is not plain data`);
  };
  return JSON.parse(JSON.stringify(config, (key, value) => {
    if (['function', 'symbol', 'bigint'].includes(typeof value)) refuse(key);
    return value;
  }));
}

module.exports = { settingsOf };
