'use strict';
// Calls per second of the wrapper's call path compared with plain Node and plain Express. All are
// measured in one run, so that the ratios hold on a noisy machine. Not a test: `node bench.js
// [seconds] [rounds]`, nothing is asserted.
//
// Server and client are separate processes; the client keeps 8 connections busy over a unix socket and
// speaks just enough HTTP to be much faster than any of the servers.

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');

const CONNECTIONS = 8;
const SECONDS = Number(process.argv[2] ?? 3);
const ROUNDS = Number(process.argv[3] ?? 3);
const REQUEST = 'GET /hello?name=ann HTTP/1.1\r\nHost: bench\r\nx-epsilon-request-id: bench-0001\r\nx-epsilon-deadline-ms: 60000\r\n\r\n';

const SERVERS = {
  'plain node': (socket) => {
    require('node:http').createServer((req, res) => res.end('Hello')).listen(socket);
  },
  'plain express': (socket) => {
    const app = require('express')();
    app.get('/hello', (req, res) => res.send('Hello'));
    app.listen(socket);
  },
  'wrapper, (req, res)': (socket) => wrapped(socket, 'express', (req, res) => res.send('Hello')),
  'wrapper, async (req, res)': (socket) => wrapped(socket, 'express', async (req, res) => res.send('Hello')),
  'wrapper, lambda': (socket) => wrapped(socket, 'lambda', async () => ({ statusCode: 200, body: 'Hello' })),
  'wrapper, fetch': (socket) => wrapped(socket, 'fetch', async () => new Response('Hello')),
};

function wrapped(socket, signature, func) {
  const { callServer, listen } = require('./lib/server.js');
  const { Unsettled } = require('./lib/unsettled.js');
  const instance = {
    name: 'bench', calls: new Set(), behindGateway: true, timeoutMs: 60_000, log: console, unsettled: new Unsettled(),
    callEnded(call) { this.calls.delete(call); },
  };
  const spec = { function: 'bench', root: process.cwd(), bodyLimit: 1e6 };
  return listen(callServer(instance, spec, { func, signature, parseBody: true }, { onSocket: true }), { path: socket });
}

async function measure(name) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'bench-'));
  const socket = path.join(folder, 'calls.sock');
  const env = { ...process.env, NODE_ENV: 'production' };
  const server = spawn(process.execPath, [__filename, '--serve', name, socket], { stdio: 'inherit', env });
  try {
    while (!fs.existsSync(socket)) await new Promise((resolve) => setTimeout(resolve, 10));
    await load(socket, 1); // warm-up
    return (await load(socket, SECONDS)) / SECONDS;
  } finally {
    server.kill('SIGKILL');
    fs.rmSync(folder, { recursive: true });
  }
}

/** Counts responses in a period; each connection sends its next request after the previous response. */
async function load(socket, seconds) {
  let answers = 0;
  let running = true;
  const connections = Array.from({ length: CONNECTIONS }, () => {
    const connection = net.connect(socket, () => connection.write(REQUEST));
    let seen = '';
    connection.on('data', (bytes) => {
      seen += bytes.toString('latin1');
      if (!seen.endsWith('Hello') && !seen.endsWith('0\r\n\r\n')) return;
      seen = '';
      answers += 1;
      if (running) connection.write(REQUEST);
    });
    return connection;
  });
  await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  running = false;
  for (const connection of connections) connection.destroy();
  return answers;
}

async function main() {
  const best = new Map();
  for (let round = 0; round < ROUNDS; round += 1) {
    for (const name of Object.keys(SERVERS)) best.set(name, Math.max(best.get(name) ?? 0, await measure(name)));
  }
  const express = best.get('plain express');
  console.log(`${'server'.padEnd(28)}${'calls/s'.padStart(9)}  × plain express`);
  for (const [name, rate] of best) {
    console.log(`${name.padEnd(28)}${Math.round(rate).toString().padStart(9)}  ${(rate / express).toFixed(2)}`);
  }
}

if (process.argv[2] === '--serve') SERVERS[process.argv[3]](process.argv[4]);
else main();
