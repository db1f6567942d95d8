'use strict';
// What happens when something goes wrong outside of every try: process-level events and the way out.
//
// | event | it belongs to a call | it belongs to none |
// |---|---|---|
// | unhandled rejection | that call fails; the instance stays | while loading: the load fails; else exit 1 |
// | uncaught exception | logged with its id; exit 1 | logged; exit 1 |
// | answering twice | a warning; the instance stays | – |
// | `process.exit()` by user code | logged with its id | logged |
//
// A rejection unwinds nobody else's stack, so the instance is as good as before. One that no call owns is
// mostly a connection made at load time that every later call would find broken: a fresh instance is
// the cure. After an uncaught exception Node itself promises nothing. Exiting drops the connections of the
// calls inside; the agent answers those with FUNCTION_CRASHED and replaces the instance.
//
// SIGTERM (and SIGINT): no more connections, the running calls end, then the process exits with 0. Where the code listens
// for the signal itself it is in charge of the end: the process goes on until the code exits, or nothing is left
// to wait for. The agent limits it.

const { currentCall, TWICE } = require('./call.js');

const EXIT_FAULT = 1;
/**
 * How long code that has a `beforeExit` hook, but none for the signal, may keep the process: such hooks are mostly a
 * library's, and its developer may not know that an open pool of connections keeps them from ever running.
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
    leaving = true; // from here on, code that ends the process in a handler of its own is welcome to
    instance.drain().then(() => {
      if (isOurs && process.listenerCount('beforeExit') === 0) exit(0);
      // The code has something to end. The process is over when nothing is left that it waits for.
      if (isOurs) setTimeout(exit, BEFORE_EXIT_MS, 0).unref();
    });
  };
  process.on('SIGTERM', drain);
  process.on('SIGINT', drain);

  return { exit, stop };
}

module.exports = { watchProcess };
