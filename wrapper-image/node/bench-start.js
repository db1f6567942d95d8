'use strict';
// Measures the time from `POST /init` to the first response for a waiting process, compared with
// plain Node that loads and serves the same code. Not a test: `node bench-start.js [rounds]
// [folder]`, nothing is asserted. `folder` is a project whose `index.js` exports `hello`; without
// it, a small built-in function is used for each signature.
//
// Prints medians. Each round uses a new process; `floor` is the client's cost of an empty request.

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const http = require('node:http');
const os = require('node:os');
const path = require('node:path');
const { setTimeout: pause } = require('node:timers/promises');

const ROUNDS = Number(process.argv[2] ?? 15);
/** Lets the process become idle, like one in a pool. */
const REST_MS = 100;
const SMALL = {
  express: 'exports.hello = (req, res) => res.send("hi");',
  fetch: 'exports.hello = { fetch: () => new Response("hi") };',
  lambda: 'exports.hello = { func: async () => ({ statusCode: 200, body: "hi" }), config: { signature: "lambda" } };',
};
/** Serves the same export with plain Node. */
const PLAIN = `
  const begun = performance.now();
  const { hello } = require(process.argv[1]);
  const serve = (req, res) => (hello.handle ? hello(req, res) : res.end('hi'));
  const server = require('node:http').createServer(serve);
  server.listen(process.argv[2], () => process.stdout.write(String(performance.now() - begun)));
`;

const temporary = fs.mkdtempSync(path.join(os.tmpdir(), 'bench-start-'));

function ask(socketPath, target, body) {
  return new Promise((resolve, reject) => {
    const method = body ? 'POST' : 'GET';
    const req = http.request({ socketPath, path: target, method, agent: false }, async (res) => {
      let text = '';
      for await (const chunk of res) text += chunk;
      if (res.statusCode === 200) resolve(text);
      else reject(new Error(text));
    });
    req.on('error', reject);
    req.end(body);
  });
}

async function timed(work) {
  const begun = performance.now();
  await work();
  return performance.now() - begun;
}

async function ended(child) {
  child.kill('SIGKILL');
  await new Promise((resolve) => child.on('close', resolve));
}

async function wrapped(root) {
  const folder = fs.mkdtempSync(path.join(temporary, 's-'));
  const [control, calls] = ['control.sock', 'calls.sock'].map((name) => path.join(folder, name));
  const env = { PATH: process.env.PATH, NODE_ENV: 'production', EPSILON_SOCKETS: folder };
  const child = spawn(process.execPath, [path.join(__dirname, 'main.js')], { env, stdio: ['ignore', 'ignore', 'inherit'] });
  const begun = performance.now();
  while (!(await ask(control, '/warm').catch(() => null))) await pause(2);
  const boot = performance.now() - begun;
  await pause(REST_MS);
  const floor = await timed(() => ask(control, '/health'));
  await pause(REST_MS);
  const spec = { function: 'hello', entry: 'index.js', export: 'hello', timeout_ms: 60_000, root };
  const init = await timed(() => ask(control, '/init', JSON.stringify(spec)));
  const first = await timed(() => ask(calls, '/'));
  await ended(child);
  return { boot, floor, init, first, both: init + first };
}

async function plain(root) {
  const socket = path.join(fs.mkdtempSync(path.join(temporary, 'p-')), 's');
  const env = { PATH: process.env.PATH, NODE_ENV: 'production' };
  const child = spawn(process.execPath, ['-e', PLAIN, root, socket], { env, stdio: ['ignore', 'pipe', 'inherit'] });
  const load = Number(await new Promise((resolve) => child.stdout.once('data', resolve)));
  const first = await timed(() => ask(socket, '/'));
  await ended(child);
  return { load, first, both: load + first };
}

function medians(rows) {
  const middle = (key) => rows.map((row) => row[key]).sort((a, b) => a - b)[rows.length >> 1];
  return Object.fromEntries(Object.keys(rows[0]).map((key) => [key, Number(middle(key).toFixed(1))]));
}

function projects() {
  if (process.argv[3]) return [path.resolve(process.argv[3])];
  return Object.entries(SMALL).map(([name, text]) => {
    const root = path.join(temporary, name);
    fs.mkdirSync(root);
    fs.writeFileSync(path.join(root, 'index.js'), text);
    return root;
  });
}

async function main() {
  const table = {};
  for (const root of projects()) {
    const [ours, theirs] = [[], []];
    for (let round = 0; round < ROUNDS; round += 1) {
      ours.push(await wrapped(root));
      theirs.push(await plain(root));
    }
    table[`${path.basename(root)}, waiting wrapper`] = medians(ours);
    table[`${path.basename(root)}, plain node`] = medians(theirs);
  }
  console.table(table, ['boot', 'floor', 'load', 'init', 'first', 'both']);
}

main().finally(() => fs.rmSync(temporary, { recursive: true }));
