'use strict';
// The settings of an export, as the builder gets them: the `config` beside it, as plain data, over
// the options of `firebase-functions`. The builder checks each key.

const { firebaseSettings } = require('./firebase.js');

/** @returns {object | null} */
function settingsOf(name, { func, config }) {
  const options = firebaseSettings(name, func);
  if (config === undefined || config === null) return Object.keys(options).length > 0 ? options : null;
  const settings = plain(name, config);
  if (typeof settings !== 'object') return settings; // the builder refuses it
  return { ...options, ...settings };
}

/** It must be plain data; a function in it would be dropped silently. */
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
