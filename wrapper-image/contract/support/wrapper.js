'use strict';
// A wrapper process of any language with a project, driven over its sockets as the agent does. The command is
// the wrapper's own; everything else here is the contract of ../../README.md.

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { call, head, until } = require('./http.js');

function folder(t) {
  const made = fs.mkdtempSync(path.join(os.tmpdir(), 'wrapper-'));
  t.after(() => fs.rmSync(made, { recursive: true, force: true }));
  return made;
}

/** Writes `{ 'index.js': '…' }` into a folder that is deleted after the test. */
function project(t, files) {
  const root = folder(t);
  for (const [name, text] of Object.entries(files)) {
    fs.mkdirSync(path.dirname(path.join(root, name)), { recursive: true });
    fs.writeFileSync(path.join(root, name), text);
  }
  return root;
}

/**
 * @param {{command: string[], entry: string}} options The wrapper's command line, and the usual name of an entry.
 */
function wrapper({ command, entry }) {
  function launch(t, env, cwd) {
    const child = spawn(command[0], command.slice(1), { cwd, env: { PATH: process.env.PATH, NODE_ENV: 'production', ...env } });
    const started = { child, out: '', err: '' };
    child.stdout.on('data', (chunk) => (started.out += chunk));
    child.stderr.on('data', (chunk) => (started.err += chunk));
    started.exit = new Promise((resolve) => child.on('close', (code, signal) => resolve({ code, signal })));
    t.after(async () => {
      child.kill('SIGKILL');
      await started.exit;
    });
    return started;
  }

  /** A process that waits for `/init`. */
  async function waiting(t, files = {}) {
    const root = project(t, files);
    const sockets = folder(t);
    const started = launch(t, { EPSILON_SOCKETS: sockets }, root);
    const control = path.join(sockets, 'control.sock');
    const calls = path.join(sockets, 'calls.sock');
    const json = async (answer) => ({ ...(await answer), json: JSON.parse((await answer).body) });
    Object.assign(started, {
      root,
      sockets,
      health: async () => (await json(call(control, { path: '/health' }))).json.data,
      control: (options) => json(call(control, options)),
      init: (spec) => json(call(control, { method: 'POST', path: '/init', body: JSON.stringify({
        version: 3, instance: '0123456789ab', function: spec.export, entry, signature: 'auto',
        timeout_ms: 5000, concurrency: 1, env: {}, root, ...spec,
      }) })),
      call: (options) => call(calls, options),
      head: (options) => head(calls, options),
      callsSocket: calls,
      /** Records of the log so far. */
      records: () => started.out.split('\n').filter((line) => line[0] === '\x1e').map((line) => JSON.parse(line.slice(1))),
      record: (matches, what) => until(() => started.records().find(matches), what ?? `a record that matches ${matches}`),
    });
    await until(() => fs.existsSync(control) && started.health().catch(() => null), 'control.sock');
    return started;
  }

  /** A process that serves an export: of the entry with this source, or of these files. */
  async function ready(t, source, spec = { export: 'f' }) {
    const files = typeof source === 'string' ? { [entry]: source } : source;
    const started = await waiting(t, files);
    const { status, body } = await started.init(spec);
    if (status !== 200) throw new Error(`init: ${status} ${body}`);
    return started;
  }

  return { waiting, ready, project, folder, launch };
}

module.exports = { wrapper, project, folder };
