'use strict';
// `(req, res)` with the real request and response of Express 5, without the cost of its router or
// of a prototype change on each call. Node's HTTP server creates the objects from two subclasses
// that inherit from an Express application's own `request` and `response`, set up once.

const http = require('node:http');
const path = require('node:path');
const express = require('express');
const { answerThrown, statusOf } = require('../answer.js');
const { hasBody, kindOf } = require('../body/kind.js');
const { BodyMemory } = require('../body/memory.js');
const { ReadAhead, PROPERTIES } = require('../body/read-ahead.js');
const { BodyRefused } = require('../body/refused.js');
const { projectView } = require('../views.js');
const { isResponse, send } = require('./fetch.js');

/** Behind the gateway every entry of `X-Forwarded-For` can be trusted: it wrote them. */
const trustGateway = () => true;
/** Express's own marker for an application that has not set `trust proxy`. */
const TRUST_IS_DEFAULT = '@@symbol:trust_proxy_default';

/** @returns the object that `server.js` serves: the classes, and `handle(call)` */
function adapt(instance, spec, { func: exported, parseBody }) {
  const func = exported.length < 2 ? answeringByResponse(exported) : exported;
  const app = application(instance, spec);
  const memory = new BodyMemory(spec.bodyLimit);

  const handle = (call) => {
    const { req, res } = call;
    call.answerFailure = answerThrown;
    req.res = res;
    req.baseUrl = call.prefix;
    req.originalUrl = call.prefix + req.url;
    const next = (err) => leave(app, call, err);
    req.next = next;
    // Most calls have no body: those reach the function within the same tick.
    if (!parseBody || !hasBody(req)) return func(req, res, next);
    const kind = kindOf(req);
    if (kind === 'stream') return func(req, res, next);
    call.body = new ReadAhead(req, kind, memory);
    Object.defineProperty(req, 'body', PROPERTIES.body);
    Object.defineProperty(req, 'rawBody', PROPERTIES.rawBody);
    return call.body.begin().then((isThere) => (isThere ? func(req, res, next) : undefined));
  };

  return { handle, ...classesOf(app) };
}

/**
 * A function that does not declare `res` may return a `Response`, as on the web platform. For a function that declares it,
 * the returned value, perhaps an upstream's response, is ignored.
 */
function answeringByResponse(func) {
  return (req, res, next) => {
    const answer = (value) => (isResponse(value) && !res.headersSent ? send(res, value) : value);
    const returned = func(req, res, next);
    return typeof returned?.then === 'function' ? returned.then(answer) : answer(returned);
  };
}

/** An exported application: uses its own request and response, and gets its mount path and `trust proxy`. */
function adaptApplication(instance, { func }) {
  if (instance.behindGateway && func.settings?.[TRUST_IS_DEFAULT] === true) func.set('trust proxy', trustGateway);
  const handle = (call) => {
    const { req, res } = call;
    if (call.prefix !== '') {
      req.baseUrl = call.prefix;
      req.originalUrl = call.prefix + req.url;
    }
    return func(req, res);
  };
  return { handle };
}

function application(instance, spec) {
  const app = express();
  app.disable('x-powered-by');
  app.set('env', process.env.NODE_ENV || 'development');
  app.set('views', path.resolve(spec.root, 'views'));
  app.set('view', projectView(spec.root));
  if (instance.behindGateway) app.set('trust proxy', trustGateway);
  return app;
}

function classesOf(app) {
  class IncomingMessage extends http.IncomingMessage {
    constructor(socket) {
      super(socket);
      this.params = {};
      this.baseUrl = '';
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
  IncomingMessage.prototype.body = undefined; // `'body' in req`, but not an own property of each request: only parsed requests have that
  Object.setPrototypeOf(IncomingMessage.prototype, app.request);
  Object.setPrototypeOf(ServerResponse.prototype, app.response);
  return { IncomingMessage, ServerResponse };
}

/**
 * `next()` of a call, which `res.sendFile`, `res.format` and `res.render` also use. An error with a 4xx status, and
 * `next()` without error (404), get Express's own final page; any other error fails the function.
 */
function leave(app, call, err) {
  if (err && (err instanceof BodyRefused || !(statusOf(err) < 500))) return call.fail(err);
  if (call.res.headersSent) return call.res.destroy();
  // A separate application, so that the router never touches `app`.
  const last = express();
  last.set('env', app.get('env'));
  last.disable('x-powered-by');
  last.use((req, res, next) => next(err));
  last(call.req, call.res);
}

module.exports = { adapt, adaptApplication };
