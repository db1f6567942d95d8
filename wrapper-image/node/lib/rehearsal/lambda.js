'use strict';
// What Lambda's handlers mostly do. Served by `../warm.js` to nobody.

exports.handler = async (event) => ({
  statusCode: 200,
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify({ path: event.rawPath, query: event.queryStringParameters, body: event.body }),
});
