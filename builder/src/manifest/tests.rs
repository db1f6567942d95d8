//! A project's entry and name. Everything else of a manifest is tested under `tests/ui/`.

use super::*;
use crate::source::tests::project;

/// Each row is a named test: the files, the folder's name => entries and project, or the error.
macro_rules! projects {
    ($($name:ident: [$($file:expr),*], $folder:expr => $want:expr;)*) => {$(
        #[tokio::test]
        async fn $name() {
            let files: &[(&str, &str)] = &[$($file),*];
            let (_work, source) = project(files).await;
            let got = match Manifest::read(&source, $folder, &Ceilings::default()) {
                Ok(manifest) => format!("{} of {}", manifest.entries().join(" "), manifest.project),
                Err(err) => format!("{}: {} ({})", err.code, err.message, err.hint.unwrap_or_default()),
            };
            assert!(got.starts_with($want), "{got}");
        }
    )*};
}

projects! {
    index_js: [("index.js", "")], Some("shop") => "index.js of shop";
    index_mjs: [("index.mjs", "")], Some("shop") => "index.mjs of shop";
    index_ts: [("index.ts", "")], Some("shop") => "index.ts of shop";
    js_comes_before_ts: [("index.ts", ""), ("index.js", "")], Some("shop") => "index.js of shop";
    main_of_the_package: [("package.json", r#"{"name":"@a/b c","main":"./src/app"}"#), ("src/app.cjs", "")], Some("x")
        => "src/app.cjs of b-c";
    main_is_a_folder: [("package.json", r#"{"main":"lib/"}"#), ("lib/index.js", "")], Some("x") => "lib/index.js of x";
    main_wins_over_index: [("package.json", r#"{"main":"a.js"}"#), ("a.js", ""), ("index.js", "")], Some("x")
        => "a.js of x";
    main_that_is_not_there: [("package.json", r#"{"main":"a.js"}"#)], Some("x")
        => "NO_FUNCTIONS: `main` of package.json is `a.js`, which does not exist";
    main_outside: [("package.json", r#"{"main":"../a.js"}"#)], Some("x") => "NO_FUNCTIONS: `main`";
    npm_inits_main_without_the_file: [("package.json", r#"{"main":"x.js"}"#), ("index.js", "")], Some("x")
        => "index.js of x";
    package_of_strange_types: [("package.json", r#"{"name":1,"main":[]}"#), ("index.js", "")], Some("x")
        => "index.js of x";
    package_broken: [("package.json", "{"), ("index.js", "")], Some("x")
        => "MANIFEST_INVALID: package.json: EOF while parsing an object at line 1 column 1";
    no_name: [("index.js", "")], None => "MANIFEST_INVALID: the project has no name (write `project: NAME`";
    no_usable_name: [("index.js", "")], Some("...") => "MANIFEST_INVALID: the project has no name";
    manifests_name_wins: [("epsilon.yml", "project: mine"), ("index.js", "")], Some("x") => "index.js of mine";
    two_manifests: [("epsilon.yml", ""), ("epsilon.yaml", "")], Some("x")
        => "MANIFEST_INVALID: there is both an `epsilon.yaml` and an `epsilon.yml` (keep one";
    empty: [], Some("x") => "NO_FUNCTIONS: the project is empty";
    nothing_to_run: [("README.md", "")], Some("x")
        => "NO_FUNCTIONS: there is neither an `epsilon.yaml` nor an `index.js` (add an `index.js`";
    only_a_dockerfile: [("Dockerfile", "")], Some("x")
        => "NO_FUNCTIONS: there is neither an `epsilon.yaml` nor an `index.js` (to build the `Dockerfile`, write";
    main_with_jsx: [("package.json", r#"{"main":"./src/app.tsx"}"#), ("src/app.tsx", "")], Some("x")
        => "NO_FUNCTIONS: `main` of package.json is `src/app.tsx`: JSX, which Node does not run (compile it: `build: \
            esbuild src/app.tsx ";
    index_with_jsx: [("index.jsx", "")], Some("x") => "NO_FUNCTIONS: there is an `index.jsx`: JSX, which Node does";
    entry_with_jsx: [("epsilon.yaml", "functions: {a: {entry: a.tsx}}"), ("a.tsx", "")], Some("x")
        => "MANIFEST_INVALID: epsilon.yaml:1:17: `functions.a.entry` is `a.tsx`: JSX, which Node does not run; compile";
    byte_order_marks: [("package.json", "\u{feff}{\"name\":\"bom\"}"), ("epsilon.yaml", "\u{feff}functions:\r\n  a:\r\n"),
        ("index.js", "")], Some("x") => "index.js of bom";
    a_tab_after_spaces: [("epsilon.yaml", "functions:\n  a:\n  \tentry: a.js\n")], Some("x")
        => "MANIFEST_INVALID: epsilon.yaml:3:3: a tab; YAML indents with spaces only";
    python: [("main.py", "")], Some("x")
        => "NO_FUNCTIONS: there is neither an `epsilon.yaml` nor an `index.js` (`runtime: python` is not supported yet";
    the_folder_was_packed: [("shop/index.js", ""), ("shop/package.json", "{}")], Some("x")
        => "NO_FUNCTIONS: there is neither an `epsilon.yaml` nor an `index.js` (pack what is in `shop`, not the folder";
    entries_are_sorted_and_once: [("epsilon.yaml", "functions: {c: {entry: b.js}, b: {entry: ./b.js}, a: {}}"),
        ("index.js", ""), ("b.js", "")], Some("x") => "b.js index.js of x";
    container_needs_an_image: [("epsilon.yaml", "runtime: container")], Some("web")
        => "MANIFEST_INVALID: epsilon.yaml: `functions.web` has no image: name one with `image`, or add a `Dockerfile`";
    container_has_no_entries: [("epsilon.yaml", "runtime: container\nimage: a"), ("index.js", "")], Some("web")
        => " of web";
}

#[tokio::test]
async fn a_manifest_has_a_largest_size_and_is_text() {
    let (_work, source) = project(&[("epsilon.yaml", &" ".repeat(300_000))]).await;
    let err = Manifest::read(&source, Some("x"), &Ceilings::default()).unwrap_err();
    assert_eq!(err.message, "epsilon.yaml is larger than 256KiB");
    let err = Document::new("epsilon.yaml", vec![0xff]).unwrap_err();
    assert_eq!(err.message, "epsilon.yaml is not UTF-8 text");
}

#[tokio::test]
async fn an_operator_moves_the_ceilings() {
    let many: String = (0..3).map(|n| format!("  f{n}:\n")).collect();
    let (_work, source) =
        project(&[("epsilon.yaml", &format!("functions:\n{many}")), ("index.js", "")]).await;
    let ceilings = Ceilings { functions: 2, ..Ceilings::default() };
    let err = Manifest::read(&source, Some("x"), &ceilings).unwrap_err();
    assert_eq!(
        err.message,
        "epsilon.yaml:1:1: `functions` are more than the operator's ceiling of 2"
    );
    assert!(Manifest::read(&source, Some("x"), &Ceilings::default()).is_ok());
}

#[test]
fn settings_in_code_are_checked_like_the_file() {
    let read = |json: &str| {
        let config = serde_json::from_str(json).unwrap();
        let keys = FunctionKeys::from_code(&config, &Ceilings::default());
        keys.map(drop).map_err(|(key, why)| format!("{key} {why}"))
    };
    assert_eq!(
        read(
            r#"{"timeout":10000,"memory":"64MiB","env":{"A":1},"minInstances":1,"idempotent":true}"#
        ),
        Ok(())
    );
    for (json, want) in [
        (r#"{"timout":1}"#, "config.timout is an unknown key; did you mean `timeout`?"),
        (r#"{"timeout":0}"#, "config.timeout must be at least 1ms"),
        (r#"{"idempotent":1}"#, "config.idempotent must be `true` or `false`, not a number"),
        (r#"{"timeout":null}"#, "config.timeout has no value"),
        (r#"{"entry":"a.js"}"#, "config.entry belongs in `epsilon.yaml`, not in the code"),
        (r#"{"image":"a"}"#, "config.image belongs in `epsilon.yaml`, not in the code"),
        (
            r#"{"secrets":["A"]}"#,
            "config.secrets is not supported yet; nothing would keep the values secret",
        ),
        (r#"{"env":{"PORT":"1"}}"#, "config.env sets `PORT`, which belongs to the platform"),
        ("[]", "config must be a map of settings, not a list"),
    ] {
        assert_eq!(read(json), Err(want.into()), "{json}");
    }
}

proptest::proptest! {
    /// Accepted numbers are in range, and nothing panics, whatever the numbers.
    #[test]
    fn numbers_of_any_size_are_judged(number in proptest::num::f64::ANY, unit in "(ms|s|m|h|)") {
        let ceilings = Ceilings::default();
        let node = Node::Number(number);
        if let Ok(timeout) = values::duration(&Node::Text(format!("{number}{unit}")), ceilings.timeout) {
            proptest::prop_assert!(!timeout.is_zero() && timeout <= ceilings.timeout);
        }
        if let Ok(cores) = values::cores(&node, ceilings.cpu) {
            proptest::prop_assert!(cores.0 >= 10 && cores <= ceilings.cpu);
        }
        if let Ok(count) = values::count(&node, 100) {
            proptest::prop_assert!(f64::from(count) == number && count <= 100);
        }
    }
}
