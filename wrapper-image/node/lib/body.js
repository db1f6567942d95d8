'use strict';
// Reads and parses request bodies for `(req, res)` functions, with Express's own parsers.
//
// | content type | `req.body` |
// |---|---|
// | `application/json`, `*+json` | the value (any JSON value, not only objects) |
// | `application/x-www-form-urlencoded` | an object, nested by `a[b]=1` |
// | `text/*` | a string |
// | `multipart/*` | not read: it stays a stream, as busboy and multer want it |
// | anything else | a Buffer |
//
// `req.rawBody` keeps the bytes that were parsed (after `Content-Encoding`), for signatures of webhooks.

const express = require('express');
const { answerBadBody } = require('./answer.js');

/** @returns a function `(call) => Promise<boolean>`; false: the caller already has its answer, or is gone */
function bodyReader(limit) {
  const keepRaw = (req, res, bytes) => {
    req.rawBody = bytes;
  };
  const options = { limit, verify: keepRaw, type: () => true };
  const parsers = {
    json: express.json({ ...options, strict: false }),
    form: express.urlencoded({ ...options, extended: true }),
    text: express.text(options),
    raw: express.raw(options),
  };

  const read = (call) =>
    new Promise((resolve) => {
      const { req, res } = call;
      parsers[kindOf(req)](req, res, (err) => {
        req._body = true; // body parsers of the project, of any age, leave it alone
        if (err && !res.destroyed) answerBadBody(res, call, err, limit);
        resolve(!err);
      });
    });

  read.isNeeded = (req) => hasBody(req) && kindOf(req) !== 'stream';
  return read;
}

function hasBody({ headers }) {
  return headers['transfer-encoding'] !== undefined || headers['content-length'] !== undefined;
}

function kindOf({ headers }) {
  const type = (headers['content-type'] ?? '').split(';', 1)[0].trim().toLowerCase();
  if (type === 'application/json' || type.endsWith('+json')) return 'json';
  if (type === 'application/x-www-form-urlencoded') return 'form';
  if (type.startsWith('text/')) return 'text';
  if (type.startsWith('multipart/')) return 'stream';
  return 'raw';
}

module.exports = { bodyReader, hasBody };
