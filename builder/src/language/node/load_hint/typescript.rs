//! Hints for TypeScript that Node does not support: it strips types and compiles nothing. Derived
//! from the text of Node's error.

/// `paths` of `tsconfig.json`.
pub(crate) const ALIASES: &str = "Node does not read `paths` of tsconfig.json: name the file (`./lib/x.ts`), or write `imports` into \
                                  package.json (`\"#lib/*\": \"./lib/*\"`), or have `build: esbuild … --bundle` resolve them";

/// Parts of Node's errors, and hints. The first match counts.
const HINTS: [(&[&str], &str); 5] = [
    (
        &["ERR_UNSUPPORTED_TYPESCRIPT_SYNTAX"],
        "Node drops types and compiles nothing: write it without enums, namespaces and parameter properties, or \
         compile it: `build: tsc` in `epsilon.yaml`, with `typescript` among the `devDependencies`",
    ),
    (
        &["ERR_UNSUPPORTED_NODE_MODULES_TYPE_STRIPPING"],
        "the package is TypeScript, and Node drops no types in `node_modules`: have it bundled, `build: esbuild … \
         --bundle --platform=node` in `epsilon.yaml`",
    ),
    (
        &["ERR_UNKNOWN_FILE_EXTENSION"],
        "Node runs `.js`, `.mjs`, `.cjs`, `.ts`, `.mts` and `.cts`; have the rest compiled, `build: esbuild … \
         --bundle --platform=node` in `epsilon.yaml`",
    ),
    (
        &["ERR_INVALID_TYPESCRIPT_SYNTAX"],
        "if it is JSX: Node does not run it; have it compiled, `build: esbuild … --bundle --platform=node` in \
         `epsilon.yaml`",
    ),
    (
        &["does not provide an export named", ".ts'"],
        "if it is a type: Node drops only what is marked as one, `import type { … }` or `import { type … }`",
    ),
];

pub(crate) fn hint(error: &str, entry: &str) -> Option<&'static str> {
    let fits = |parts: &[&str]| parts.iter().all(|part| error.contains(part));
    let found = HINTS.iter().find(|(parts, _)| fits(parts)).map(|(_, hint)| *hint);
    // Node's error for a decorator, which has no position. In JavaScript they are not expected to
    // work.
    let is_token = error.contains("SyntaxError: Invalid or unexpected token");
    let is_typescript = entry.ends_with("ts") || error.contains(".ts:");
    found.or((is_token && is_typescript).then_some(
        "are there decorators in it? Node does not run them; have them compiled: `build: tsc` in `epsilon.yaml`, with \
         `typescript` among the `devDependencies`",
    ))
}

/// Whether a module name that was not found is probably an alias of `tsconfig.json`.
pub(crate) fn is_alias(name: &str) -> bool {
    ["@/", "~/", "src/"].iter().any(|start| name.starts_with(start)) || name == "~"
}
