'use strict';
// Writes log records to the real standard output. It does not decide what is logged: `capture.js` does
// for user code, everyone else calls `write`.
//
// Two forms. `records`: RS (0x1e) + one line of JSON, after RFC 7464, so that the agent can tell a
// record from a line that a child process or the engine itself printed. `text`: for people.

const path = require('node:path');
const { inspect } = require('node:util');
const { currentCall } = require('./call.js');

/** Longest message in characters. A stack has 2,000–4,000; longer messages are dumps, where the beginning suffices. */
const MESSAGE_MAX = 64 * 1024;

const NODE_FRAME = /^ +at .*\bnode:/;
const OWN_FOLDER = `${path.dirname(__dirname)}/`;

class Log {
  #print;
  #form;

  /**
   * @param {'records'|'text'} form
   * @param {(text: string) => void} [print] destination; by default standard output as it was before any capture
   */
  constructor(form, print = process.stdout.write.bind(process.stdout)) {
    this.#form = form === 'records' ? record : text;
    this.#print = print;
  }

  /** @param {'debug'|'info'|'warn'|'error'} level */
  write(level, message, call = currentCall()) {
    this.#print(this.#form(new Date().toISOString(), level, call?.id, bounded(message)));
  }

  /** Logs an error with its stack and causes; accepts any thrown value. */
  error(headline, thrown, call = currentCall()) {
    this.write('error', `${headline}\n${describe(thrown)}`, call);
  }
}

function record(time, level, request_id, message) {
  return `\x1e${JSON.stringify({ time, level, request_id, message })}\n`;
}

function text(time, level, id, message) {
  return `${time} ${level.padEnd(5)} ${id ?? '-'} ${message}\n`;
}

function bounded(message) {
  if (message.length <= MESSAGE_MAX) return message;
  return `${message.slice(0, MESSAGE_MAX)}… [${message.length - MESSAGE_MAX} characters more]`;
}

/** Describes a thrown value: an error's stack with causes, without frames of the wrapper and Node. */
function describe(thrown) {
  let shown;
  try {
    shown = inspect(thrown);
  } catch {
    shown = 'a value that cannot be shown'; // a throwing getter or inspect hook
  }
  return withoutOurs(shown);
}

/** Drops the frames of Node and all lines about the wrapper's own files ("Require stack" lists them too). */
function withoutOurs(text) {
  const kept = [];
  for (const line of text.split('\n')) {
    if (!line.includes(OWN_FOLDER) && !NODE_FRAME.test(line)) kept.push(line);
    // The last frame opens the error's own properties; their closing bracket stays, so this must stay too.
    else if (line.endsWith(' {') && kept.length > 0) kept.push(`${kept.pop()} {`);
  }
  return kept.join('\n');
}

module.exports = { Log, MESSAGE_MAX, describe, withoutOurs };
