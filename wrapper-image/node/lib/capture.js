'use strict';
// Turns the output of user code into log records that carry the id of the call that printed it.
//
// One `console` call is one record, however many lines it has, so a stack stays in one record. Raw
// writes to `process.stdout`/`process.stderr` become one record per line; an unfinished line is
// written when the call ends. Output of child processes and of the engine does not pass through
// here: it reaches the agent as raw lines.

const { StringDecoder } = require('node:string_decoder');
const { currentCall } = require('./call.js');
const { MESSAGE_MAX } = require('./log.js');

/** Levels of the console methods whose stream does not determine the level. */
const CONSOLE_LEVELS = { debug: 'debug', trace: 'debug', warn: 'warn', assert: 'warn', countReset: 'warn' };
/** Console methods that print. */
const CONSOLE_METHODS = [
  'log', 'info', 'error', 'dir', 'dirxml', 'table', 'group', 'groupCollapsed', 'count', 'timeEnd', 'timeLog',
  ...Object.keys(CONSOLE_LEVELS),
];

/** Starts the capture for the whole process. Called once, by `main.js`, before user code exists. */
function captureOutput(log) {
  let printing = null; // the console method that is running: printing is synchronous
  const out = new Lines(log, 'info');
  const err = new Lines(log, 'error');

  for (const method of CONSOLE_METHODS) {
    const original = console[method];
    console[method] = (...args) => {
      const outer = printing;
      printing ??= method;
      try {
        original.apply(console, args);
      } finally {
        printing = outer;
      }
    };
  }

  for (const [stream, lines] of [[process.stdout, out], [process.stderr, err]]) {
    stream.on('error', () => {}); // the log reader has closed; that must not end calls
    stream.write = (chunk, encoding, callback) => {
      if (typeof encoding === 'function') [encoding, callback] = [undefined, encoding];
      if (printing) log.write(CONSOLE_LEVELS[printing] ?? lines.level, String(chunk).replace(/\n$/, ''));
      else lines.add(chunk, encoding);
      if (callback) process.nextTick(callback);
      return true;
    };
  }

  process.removeAllListeners('warning'); // the default one prints past the log
  process.on('warning', (warning) => log.write('warn', `${warning.name}: ${warning.message}`));

  return {
    /** Writes the unfinished lines of an ended call; of all calls when the process ends. */
    flush(call) {
      out.flush(call);
      err.flush(call);
    },
  };
}

/** Cuts one stream into lines, per call. */
class Lines {
  #unfinished = new Map(); // call, or null outside of calls -> { decoder, text }
  #log;

  constructor(log, level) {
    this.#log = log;
    this.level = level;
  }

  add(chunk, encoding) {
    const call = currentCall() ?? null;
    const state = this.#unfinished.get(call) ?? { decoder: new StringDecoder('utf8'), text: '' };
    state.text += typeof chunk === 'string' && encoding !== 'hex' && encoding !== 'base64'
      ? chunk
      : state.decoder.write(Buffer.from(chunk, encoding));
    const lines = state.text.split('\n');
    state.text = lines.pop();
    for (const line of lines) this.#log.write(this.level, line, call);
    if (state.text.length > MESSAGE_MAX || call?.ended) {
      this.#print(state, call);
      state.text = '';
    }
    if (state.text === '' && state.decoder.lastNeed === 0) this.#unfinished.delete(call);
    else this.#unfinished.set(call, state);
  }

  flush(call) {
    if (call === undefined) {
      for (const key of this.#unfinished.keys()) this.flush(key);
    } else if (this.#unfinished.has(call)) {
      this.#print(this.#unfinished.get(call), call);
      this.#unfinished.delete(call);
    }
  }

  #print(state, call) {
    if (state.text !== '') this.#log.write(this.level, state.text, call);
  }
}

module.exports = { captureOutput };
