'use strict';
// This wrapper as a process, with projects whose sources stand in the tests.

const path = require('node:path');
const { wrapper } = require('../../../contract/support/wrapper.js');

module.exports = wrapper({ command: [process.execPath, path.join(__dirname, '../../main.js')], entry: 'index.js' });
