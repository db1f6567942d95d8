'use strict';
// Which project files each export of an entry reaches. esbuild makes one bundle per export, drops
// code that the export does not use, and its metafile lists the remaining files. The bundles are
// never run.
//
// A file is left out for an export only if the export uses nothing from it and loading it has no
// side effects. esbuild decides both, and ignores the project's own annotations (`sideEffects`,
// `@__PURE__`). esbuild never drops parts of CommonJS modules, so modules with common patterns are
// rewritten as ES modules first (commonjs.js); others count in full for every export.
//
// Called by the runtime's inspect.js, in its container, for entries with more than one export.

const crypto = require('node:crypto');
const fs = require('node:fs');
const { createRequire } = require('node:module');
const path = require('node:path');
const esbuild = require('esbuild');
const { asModule } = require('./commonjs.js');

const CODE = /\.(js|cjs|mjs|ts|cts|mts)$/;
const MAYBE_COMMONJS = /\.(js|cjs)$/;
/** Limit for the bundles, which are made in memory, one per export: size of the entry's files times exports. */
const MOST_BYTES = 64 << 20;
const EXPORT = 'epsilon-export';

/**
 * @param {string} root the project
 * @param {string} entry its path in the project
 * @param {string[]} files project files that the entry reaches, as observed while loading it
 * @param {string[]} names of its exports
 * @returns {Promise<Record<string, { files: string[], code: string }>>} per export: the files it reaches, and the digest
 *   of the remaining code
 */
async function split(root, entry, files, names) {
  const base = fs.realpathSync(root);
  const bytes = files.reduce((sum, file) => sum + fs.statSync(path.join(base, file)).size, 0);
  if (bytes * names.length > MOST_BYTES) throw new Error('too much code to analyse each export');
  const built = await esbuild.build({
    entryPoints: names.map((name, at) => ({ in: `${EXPORT}:${name}`, out: String(at) })),
    outdir: path.join(base, 'out'),
    absWorkingDir: base,
    bundle: true, format: 'esm', platform: 'node', treeShaking: true, ignoreAnnotations: true, tsconfigRaw: {},
    metafile: true, write: false, logLevel: 'silent',
    plugins: [project(base, entry)],
  });
  const graph = new Set(Object.keys(built.metafile.inputs));
  const packages = Object.values(built.metafile.inputs).flatMap((input) => input.imports)
    .filter((one) => one.external).map((one) => one.path);
  return Object.fromEntries(names.map((name, at) => {
    const output = built.outputFiles.find((file) => path.basename(file.path) === `${at}.js`);
    const live = built.metafile.outputs[path.relative(base, output.path)].inputs;
    // esbuild does not know how the package was resolved: it may affect every export.
    const reached = new Set(files.filter((file) => file === entry || file in live || !graph.has(file)));
    for (const file of Object.keys(live)) if (!file.startsWith(`${EXPORT}:`)) reached.add(file);
    return [name, { files: [...reached].sort(), code: digest(output.text, packages) }];
  }));
}

/** Packages have side effects at load: each package that the entry loads affects all exports. */
function digest(text, packages) {
  return crypto.createHash('sha256').update(JSON.stringify([...new Set(packages)].sort())).update(text).digest('hex');
}

/** Resolves and reads modules of the project; packages stay external. */
function project(base, entry) {
  return {
    name: 'epsilon',
    setup(build) {
      build.onResolve({ filter: new RegExp(`^${EXPORT}:`) }, ({ path: name }) => ({ path: name.slice(EXPORT.length + 1), namespace: EXPORT }));
      build.onLoad({ filter: /./, namespace: EXPORT }, ({ path: name }) => ({
        contents: `export { ${name} } from ${JSON.stringify(`./${entry}`)}`, resolveDir: base,
      }));
      build.onResolve({ filter: /^(\.{1,2}(\/|$)|\/)/ }, ({ path: name, resolveDir }) => {
        const found = asNode(name, resolveDir);
        return found === null ? { path: name, external: true } : { path: found };
      });
      // esbuild resolves `#alias`; everything else is a package or a Node built-in.
      build.onResolve({ filter: /^[^./#]/ }, ({ path: name, kind }) => (kind === 'entry-point' ? undefined : { path: name, external: true, sideEffects: false }));
      build.onLoad({ filter: /./, namespace: 'file' }, ({ path: file }) => {
        if (!CODE.test(file) || path.relative(base, file).split(path.sep).includes('node_modules')) return { contents: '', loader: 'empty' };
        const source = fs.readFileSync(file, 'utf8');
        const contents = MAYBE_COMMONJS.test(file) ? asModule(source) ?? source : source;
        return { contents, loader: /ts$/.test(file) ? 'ts' : 'js' };
      });
    },
  };
}

function asNode(name, folder) {
  try {
    return createRequire(path.join(folder, 'x')).resolve(name);
  } catch {
    return null;
  }
}

module.exports = { split };
