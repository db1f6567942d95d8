'use strict';
// `(req, res)` with the request and response of Express 5: not look-alikes, but without paying for its
// router, or for a change of prototype, on each call. Node's HTTP server makes the objects itself, from two
// subclasses that inherit from an Express application's own `request` and `response`, set up once.

const http = require('node:http');
const path = require('node:path');
const express = require('express');
const { bodyReader } = require('../body.js');
const { projectView } = require('../views.js');

/** @returns what `server.js` serves: the classes, and `handle(call)` */
function adapt(instance, spec, { func, parseBody }) {
  const app = application(instance, spec);
  const readBody = parseBody ? bodyReader(spec.bodyLimit) : null;

  const handle = (call) => {
    const { req, res } = call;
    req.res = res;
    req.originalUrl = req.url;
    const next = (err) => leave(app, call, err);
    req.next = next;
    // Most calls have no body: those reach the function within the same tick.
    if (readBody === null || !readBody.isNeeded(req)) return func(req, res, next);
    return readBody(call).then((read) => (read ? func(req, res, next) : undefined));
  };

  return { handle, ...classesOf(app) };
}

function application(instance, spec) {
  const app = express();
  app.disable('x-powered-by');
  app.set('env', process.env.NODE_ENV || 'development');
  app.set('views', path.resolve(spec.root, 'views'));
  app.set('view', projectView(spec.root));
  // Exactly one hop is ours: the gateway, which overwrites `X-Forwarded-*`.
  if (instance.behindGateway) app.set('trust proxy', 1);
  return app;
}

function classesOf(app) {
  class IncomingMessage extends http.IncomingMessage {
    constructor(socket) {
      super(socket);
      this.params = {};
      this.baseUrl = '';
      this.body = undefined;
      this.res = undefined;
      this.next = undefined;
      this.originalUrl = '';
    }
  }
  class ServerResponse extends http.ServerResponse {
    constructor(req, options) {
      super(req, options);
      this.locals = Object.create(null);
    }
  }
  Object.setPrototypeOf(IncomingMessage.prototype, app.request);
  Object.setPrototypeOf(ServerResponse.prototype, app.response);
  return { IncomingMessage, ServerResponse };
}

/**
 * `next()` of a call, which `res.sendFile`, `res.format` and `res.render` also use. An error with a 4xx
 * status, and no error at all (404), get Express's own final page; any other error is the function's.
 */
function leave(app, call, err) {
  if (err && !(err.status >= 400 && err.status < 500)) return call.fail(err);
  if (call.res.headersSent) return call.res.destroy();
  // An application of its own, so that the router never touches `app`.
  const last = express();
  last.set('env', app.get('env'));
  last.disable('x-powered-by');
  last.use((req, res, next) => next(err));
  last(call.req, call.res);
}

module.exports = { adapt };
