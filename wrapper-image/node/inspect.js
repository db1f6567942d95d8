'use strict';
// Reports to the builder what the project's entries export and which files they reach. Runs in a
// container of the runtime without network: `EPSILON_INSPECT_OUT=FILE node inspect.js ENTRY…` in
// the project's root.
//
// Each entry is loaded in its own process, so that an entry that throws, exits or never finishes
// loading is an error for that entry only. Output of the code goes to the log.
//
// The module named by `EPSILON_INSPECT_GRAPH` (the builder's, not part of the runtime) determines
// which files each export reaches.

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

/** Time limit for loading one entry. Code that takes longer waits for something that does not exist here. */
const LOAD_LIMIT_MS = Number(process.env.EPSILON_INSPECT_TIMEOUT_MS ?? 20_000);
const EXIT_USAGE = 2;
/** The child's result comes on a separate pipe, so that user code's output cannot mix with it. */
const RESULT_FD = 3;

function inspectEntry(entry) {
  const child = spawn(process.execPath, [path.join(__dirname, 'lib/inspect/entry.js'), entry], {
    stdio: ['ignore', 'inherit', 'inherit', 'pipe'],
  });
  const failed = (message) => ({ entry, error: { message, stack: '' }, exports: [], files: [entry], dynamic: [] });
  const chunks = [];
  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    child.kill('SIGKILL');
  }, LOAD_LIMIT_MS);
  child.stdio[RESULT_FD].on('data', (chunk) => chunks.push(chunk));
  return new Promise((resolve) => {
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      if (timedOut) return resolve(failed(`\`${entry}\` did not finish loading within ${LOAD_LIMIT_MS} ms`));
      if (chunks.length > 0) return resolve(parsed(Buffer.concat(chunks)) ?? failed(`\`${entry}\` wrote to file descriptor ${RESULT_FD}, which belongs to the platform`));
      if (code === 0) return resolve(failed(`\`${entry}\` ended before it was loaded: \`process.exit()\`, or an \`await\` that never settles`));
      const end = signal ? `was ended by ${signal}` : `exited with code ${code}`;
      // Only the kernel sends the first signal here: to a process that exceeds the container's
      // memory limit. The second is how V8 aborts when its heap is full.
      const why = signal === 'SIGKILL' || signal === 'SIGABRT' ? '; most likely it ran out of memory' : '';
      resolve(failed(`\`${entry}\` ${end} while loading${why}`));
    });
  });
}

function parsed(bytes) {
  try {
    return JSON.parse(bytes);
  } catch {
    return null;
  }
}

/** Adds the reached files to each export, or the reason why they cannot be determined. */
async function withGraph(report, graph) {
  const { entry, error, exports, files, dynamic } = report;
  if (!graph || error !== null || dynamic.length > 0 || exports.length < 2) return report;
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${LOAD_LIMIT_MS} ms`)), LOAD_LIMIT_MS);
  });
  try {
    const names = exports.map(({ name }) => name);
    const reached = await Promise.race([require(graph).split(process.cwd(), entry, files, names), late]);
    return { ...report, exports: exports.map((one) => ({ ...one, reach: reached[one.name] })) };
  } catch (err) {
    return { ...report, together: String(err?.errors?.[0]?.text ?? err?.message ?? err) };
  } finally {
    clearTimeout(timer);
  }
}

async function main(entries, out) {
  if (entries.length === 0 || !out) {
    console.error('usage: EPSILON_INSPECT_OUT=FILE node inspect.js ENTRY…');
    process.exitCode = EXIT_USAGE;
    return;
  }
  const report = { entries: [] };
  for (const entry of entries) report.entries.push(await withGraph(await inspectEntry(entry), process.env.EPSILON_INSPECT_GRAPH));
  fs.writeFileSync(out, JSON.stringify(report));
  process.exit(); // a timed-out graph module may still be running
}

main(process.argv.slice(2), process.env.EPSILON_INSPECT_OUT);
