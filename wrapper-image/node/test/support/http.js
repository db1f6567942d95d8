'use strict';
// The client that the contract's tests use.

module.exports = require('../../../contract/support/http.js');
