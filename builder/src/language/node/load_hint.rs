//! What to do about an error that the code threw while it was loaded, from the text of Node's error.

mod typescript;

/// A hint for the error that the code of this entry threw, if its text matches a known cause.
pub(super) fn hint(error_text: &str, entry: &str) -> Option<String> {
    let says = |words: &[&str]| words.iter().any(|word| error_text.contains(word));
    if let Some(hint) = typescript::hint(error_text, entry) {
        return Some(hint.to_owned());
    }
    if says(&["EROFS"]) {
        return Some("the project's folder is read-only: write below `/tmp`".into());
    }
    if says(&["MODULE_NOT_FOUND"]) {
        let missing = missing_module(error_text);
        if missing.is_some_and(typescript::is_alias) {
            return Some(typescript::ALIASES.into());
        }
        return missing.map(|name| {
            if name.starts_with(['.', '/']) {
                "is the file there, and pushed (`.gitignore` and `.epsilonignore` leave files out)? ES \
                 modules name a file with its ending, `./lib.js` or `./lib.ts`"
                    .into()
            } else {
                format!(
                    "add `{name}` to the `dependencies` of package.json: `npm install {name}`; \
                     `devDependencies` are not installed"
                )
            }
        });
    }
    if says(&["ENOTFOUND", "EAI_AGAIN", "ENETUNREACH", "ECONNREFUSED"]) {
        return Some(
            "there is no network while code is loaded for inspection: connect in a call".into(),
        );
    }
    if says(&["SyntaxError"]) {
        return None;
    }
    Some(
        "code is loaded once while it is deployed: without network, and with no variables but those of `env` \
         in `epsilon.yaml`"
            .into(),
    )
}

/// The module that Node did not find, as the code names it.
pub(super) fn missing_module(error_text: &str) -> Option<&str> {
    let (_, rest) = error_text
        .split_once("Cannot find ")
        .filter(|_| error_text.contains("MODULE_NOT_FOUND"))?;
    rest.split('\'').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_to_load_says_what_to_do() {
        for (error_text, wanted) in [
            ("SyntaxError [ERR_UNSUPPORTED_TYPESCRIPT_SYNTAX]: TypeScript enum …", "compile"),
            (
                "Error: Cannot find module 'lodash'\n  code: 'MODULE_NOT_FOUND'",
                "npm install lodash",
            ),
            (
                "Error [ERR_MODULE_NOT_FOUND]: Cannot find package '@a/b' imported from /app/x.js",
                "npm install @a/b",
            ),
            (
                "Error [ERR_MODULE_NOT_FOUND]: Cannot find module '/app/types' imported from /app/i.ts",
                "./lib.ts",
            ),
            (
                "Error [ERR_MODULE_NOT_FOUND]: Cannot find package '@/lib' imported from /app/i.ts",
                "tsconfig",
            ),
            ("Error: Cannot find module '~/lib'\n  code: 'MODULE_NOT_FOUND'", "tsconfig"),
            (
                "TypeError [ERR_UNKNOWN_FILE_EXTENSION]: Unknown file extension \".tsx\" for /app/c.tsx",
                "esbuild",
            ),
            ("SyntaxError [ERR_INVALID_TYPESCRIPT_SYNTAX]: Unterminated regexp literal", "JSX"),
            ("SyntaxError: Invalid or unexpected token", "decorators"),
            (
                "SyntaxError: The requested module './t.ts' does not provide an export named 'Foo'",
                "import type",
            ),
            ("Error [ERR_UNSUPPORTED_NODE_MODULES_TYPE_STRIPPING]: …", "--bundle"),
            ("Error: EROFS: read-only file system, mkdir 'uploads'", "`/tmp`"),
            ("Error: getaddrinfo EAI_AGAIN db.internal", "in a call"),
            ("Error: API_KEY missing", "`env`"),
        ] {
            assert!(
                hint(error_text, "i.ts").is_some_and(|hint| hint.contains(wanted)),
                "{error_text}: {:?}",
                hint(error_text, "i.ts")
            );
        }
        assert_eq!(hint("SyntaxError: Unexpected end of input", "i.ts"), None);
        assert_eq!(hint("SyntaxError: Invalid or unexpected token", "i.js"), None);
    }
}
