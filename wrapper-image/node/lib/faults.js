'use strict';
// Handles faults that no `try` catches: process-level events and shutdown.
//
// | event | within a call | outside of calls |
// |---|---|---|
// | unhandled rejection | that call fails; the instance stays | while loading: the load fails; else exit 1 |
// | uncaught exception | logged with its id; exit 1 | logged; exit 1 |
// | second response | a warning; the instance stays | – |
// | `process.exit()` by user code | logged with its id | logged |
//
// A rejection unwinds no other call's stack, so the instance remains usable. A rejection outside of
// calls mostly comes from a connection made at load time, which every later call would find broken;
// a new instance solves that. After an uncaught exception Node itself guarantees nothing. Exiting
// drops the connections of the running calls; the agent answers those with FUNCTION_CRASHED and
// replaces the instance.
//
// SIGTERM (and SIGINT): no new connections, running calls end, then the process exits with 0. If
// the code listens for the signal itself, it controls the shutdown: the process continues until the
// code exits or nothing is left to wait for. The agent limits the time.

const { currentCall, TWICE } = require('./call.js');

const EXIT_FAULT = 1;
/**
 * Time limit for code that has a `beforeExit` hook but no signal handler. Such hooks mostly belong to a library, and the
 * developer may not know that an open connection pool keeps them from running.
 */
const BEFORE_EXIT_MS = 1000;

function watchProcess(instance, capture) {
  const { log } = instance;
  let leaving = false;

  const exit = (code) => {
    leaving = true;
    process.exit(code);
  };

  const stop = (err) => {
    log.error('The instance stops.', err);
    exit(EXIT_FAULT);
  };

  process.on('uncaughtException', (err) => {
    const call = currentCall();
    if (call && TWICE.has(err?.code)) return call.fail(err);
    if (instance.failLoading(err)) return;
    log.error('Uncaught exception; the instance stops.', err);
    exit(EXIT_FAULT);
  });

  process.on('unhandledRejection', (reason) => {
    const call = currentCall();
    if (call) return call.fail(reason);
    if (instance.failLoading(reason)) return;
    log.error('Unhandled rejection outside of a call; the instance stops.', reason);
    exit(EXIT_FAULT);
  });

  process.on('exit', (code) => {
    instance.unsettled.letGoAll();
    capture.flush();
    if (!leaving) log.write('error', `The code ended the process with exit code ${code}.`);
  });

  const drain = (signal) => {
    const isOurs = process.listenerCount(signal) === 1;
    leaving = true; // from here on, a handler of the code may end the process
    instance.drain().then(() => {
      if (isOurs && process.listenerCount('beforeExit') === 0) exit(0);
      // The code has cleanup to do. The process ends when nothing is left to wait for.
      if (isOurs) setTimeout(exit, BEFORE_EXIT_MS, 0).unref();
    });
  };
  process.on('SIGTERM', drain);
  process.on('SIGINT', drain);

  return { exit, stop };
}

module.exports = { watchProcess };
