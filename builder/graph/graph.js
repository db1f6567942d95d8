'use strict';
// Which files of a project each export of an entry reaches: esbuild makes one bundle per export, drops what that
// export does not use, and says in its metafile what is left. Nothing of the bundles is ever run.
//
// A file is left out of an export only where nothing of it is used and loading it does nothing else; esbuild decides
// both, without believing the project's own marks (`sideEffects`, `@__PURE__`). esbuild takes CommonJS modules whole,
// so those of the common shapes are told to it as ES modules (commonjs.js); others count whole for every export.
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
/** Bundles are made in memory, one per export: entry's files times exports. */
const MOST_BYTES = 64 << 20;
const EXPORT = 'epsilon-export';

/**
 * @param {string} root the project
 * @param {string} entry its path in the project
 * @param {string[]} files of the project that the entry reaches, as far as loading it showed
 * @param {string[]} names of its exports
 * @returns {Promise<Record<string, { files: string[], code: string }>>} per export: what it reaches, and the digest
 *   of the code that is left
 */
async function split(root, entry, files, names) {
  const base = fs.realpathSync(root);
  const bytes = files.reduce((sum, file) => sum + fs.statSync(path.join(base, file)).size, 0);
  if (bytes * names.length > MOST_BYTES) throw new Error('too much code for a look at each export');
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
    // What esbuild does not know, a package found by itself: it may matter to each export.
    const reached = new Set(files.filter((file) => file === entry || file in live || !graph.has(file)));
    for (const file of Object.keys(live)) if (!file.startsWith(`${EXPORT}:`)) reached.add(file);
    return [name, { files: [...reached].sort(), code: digest(output.text, packages) }];
  }));
}

/** Packages do things when they are loaded: each that the entry loads matters to all of its exports. */
function digest(text, packages) {
  return crypto.createHash('sha256').update(JSON.stringify([...new Set(packages)].sort())).update(text).digest('hex');
}

/** How modules of the project are found and read; packages stay outside. */
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
      // `#alias` is esbuild's to follow; everything else is a package or Node's own.
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
