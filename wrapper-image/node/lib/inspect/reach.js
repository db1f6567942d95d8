'use strict';
// Which project files an entry can reach: those that were loaded, and those that a literal
// `require` or `import` in them would load later. The builder uses their content in the keys of its
// images.
//
// A missed file would leave old code running after a deployment, so this scans plain text and
// prefers false positives: a match in a comment or string counts too, and anything that cannot be
// followed is reported as `dynamic`, for which the builder takes every file of the project.

const fs = require('node:fs');
const { createRequire } = require('node:module');
const path = require('node:path');

const SOURCE = /\.(js|cjs|mjs|ts|cts|mts)$/;
/** `require('x')`, `require.resolve('x')`, `import('x')`, `import 'x'`, `… from 'x'`. */
const LITERALS = [
  /\b(?:require(?:\.resolve)?|import)\s*\(\s*(['"`])([^'"`$\n]+)\1\s*[,)]/g,
  /\b(?:import|from)\s*(['"])([^'"\n]+)\1/g,
];
/** Other ways to load code: computed names, `require` under another name, threads and processes. */
const DYNAMIC = [
  /\brequire(?:\.resolve)?\s*\(\s*(?!\s|['"][^'"\n]*['"]\s*[,)]|`[^`$\n]*`\s*[,)])[^\n]*/g,
  /\bimport\s*\(\s*(?!\s|['"][^'"\n]*['"]\s*[,)]|`[^`$\n]*`\s*[,)])[^\n]*/g,
  /(?<![.\w])require\b(?!\s*[.(]|\s*:)[^\n]*/g,
  /\b(?:createRequire|new\s+Worker|fork|registerHooks|import\.meta\.(?:resolve|glob)|(?<!\.)eval)\s*\([^\n]*/g,
];
const TEXT_MAX = 120;

/**
 * @param {string} root
 * @param {Iterable<string>} loaded absolute paths
 * @returns {{ files: string[], dynamic: { file: string, line: number, text: string }[] }} relative to root
 */
function reach(root, loaded) {
  const base = fs.realpathSync(root);
  const files = new Map();
  const waiting = [...loaded];
  while (waiting.length > 0) {
    const absolute = waiting.pop();
    if (!fs.statSync(absolute, { throwIfNoEntry: false })?.isFile()) continue;
    const file = path.relative(base, fs.realpathSync(absolute));
    if (files.has(file) || !isOfProject(file)) continue;
    const source = SOURCE.test(file) ? fs.readFileSync(path.join(base, file), 'utf8') : '';
    files.set(file, source);
    waiting.push(...literals(path.join(base, file), source));
  }
  const sorted = [...files.keys()].sort();
  return { files: sorted, dynamic: sorted.flatMap((file) => dynamics(file, files.get(file))) };
}

function isOfProject(file) {
  return file !== '' && !file.startsWith('..') && !path.isAbsolute(file) && !file.split(path.sep).includes('node_modules');
}

function* literals(file, source) {
  const require = createRequire(file);
  for (const [, , specifier] of LITERALS.flatMap((pattern) => [...source.matchAll(pattern)])) {
    try {
      const found = specifier.startsWith('file:') ? new URL(specifier).pathname : require.resolve(specifier);
      if (path.isAbsolute(found)) yield found;
    } catch {
      yield path.resolve(path.dirname(file), specifier); // perhaps a file for `import` only
    }
  }
}

function dynamics(file, source) {
  const found = [];
  for (const pattern of DYNAMIC) {
    for (const match of source.matchAll(pattern)) {
      const line = source.slice(0, match.index).split('\n').length;
      found.push({ file, line, text: match[0].trim().slice(0, TEXT_MAX) });
    }
  }
  return found.sort((a, b) => a.line - b.line);
}

module.exports = { reach };
