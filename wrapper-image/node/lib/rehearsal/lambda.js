'use strict';
// A typical Lambda handler. Only called by `../warm.js`.

exports.handler = async (event) => ({
  statusCode: 200,
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify({ path: event.rawPath, query: event.queryStringParameters, body: event.body }),
});
