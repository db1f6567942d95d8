//! Which exports become functions, and which change rebuilds which function.

use super::*;
use crate::{manifest::Ceilings, source::tests::project};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn export(name: &str) -> Value {
    json!({"name": name, "signature": "express", "config": null})
}

fn entry(path: &str, exports: &[&str], files: &[&str]) -> Value {
    let exports: Vec<_> = exports.iter().map(|name| export(name)).collect();
    json!({"entry": path, "error": null, "exports": exports, "files": files, "dynamic": []})
}

fn inspection(entries: &[Value]) -> Inspection {
    Inspection::parse(json!({"entries": entries}).to_string().as_bytes()).unwrap()
}

fn names(names: &[&str]) -> Vec<FunctionName> {
    names.iter().map(|name| FunctionName::parse(name).unwrap()).collect()
}

async fn planned(
    files: &[(&str, &str)],
    entries: &[Value],
    only: &[&str],
) -> Result<Plan, BuildError> {
    let (_work, source) = project(files).await;
    let manifest = Manifest::read(&source, Some("shop"), &Ceilings::default())?;
    plan(&manifest, &source, &inspection(entries), &names(only))
}

/// Functions as `name=entry#export`, then the notes.
fn summary(result: Result<Plan, BuildError>) -> String {
    match result {
        Ok(plan) => {
            let functions = plan.functions.iter().map(|function| {
                let FunctionPlan { name, spec, .. } = function;
                format!("{name}={}#{}", spec.entry, spec.export)
            });
            functions.chain(plan.notes.clone()).collect::<Vec<_>>().join("; ")
        }
        Err(err) => format!("{}: {} ({})", err.code, err.message, err.hint.unwrap_or_default()),
    }
}

const INDEX: (&str, &str) = ("index.js", "");

/// Each row is a named test: exports of `index.js` => the plan.
macro_rules! exports {
    ($($name:ident: $exports:expr => $want:expr;)*) => {$(
        #[tokio::test]
        async fn $name() {
            let exports: &[&str] = &$exports;
            let got = summary(planned(&[INDEX], &[entry("index.js", exports, &["index.js"])], &[]).await);
            assert_eq!(got, $want);
        }
    )*};
}

exports! {
    every_export_by_name: ["b", "a"] => "a=index.js#a; b=index.js#b";
    default_takes_the_projects_name: ["default", "a"] => "a=index.js#a; shop=index.js#default";
    default_beside_its_own_name: ["default", "shop"] => "shop=index.js#shop; the default export is not deployed: \
        an export has the project's name `shop`";
    a_name_that_cannot_be_called_is_left_out: ["_a", "b"] => "b=index.js#b; an export is not deployed: `_a` is not a \
        function name: a letter, then up to 62 letters, digits, `-` or `_`";
    only_names_that_cannot_be_called: ["__proto__"] => "NO_FUNCTIONS: `index.js` exports nothing that can be called \
        (an export is not deployed: `__proto__` is not a function name: a letter, then up to 62 letters, digits, \
        `-` or `_`)";
    a_path_of_the_platform_is_left_out: ["metrics", "b"] => "b=index.js#b; an export is not deployed: `metrics` is a path \
        of the platform; to deploy it, name it in `epsilon.yaml`: under `functions:`, another name with `export: metrics`";
    nothing: [] => "NO_FUNCTIONS: `index.js` exports nothing that can be called (export a function, \
        `exports.hello = (req, res) => res.send('hi')`, or an Express application, `module.exports = app`; what only \
        listens, or registers itself with a framework, is not seen: a Dockerfile and `runtime: container` serve such a \
        program)";
}

#[tokio::test]
async fn platform_paths_are_no_function_names() {
    for yaml in [
        "functions: { v1: { export: a } }",
        "project: git",
        "{ runtime: container, image: x, functions: { mcp: {} } }",
    ] {
        let files = [INDEX, ("epsilon.yaml", yaml)];
        let got = summary(planned(&files, &[entry("index.js", &["a", "default"], &[])], &[]).await);
        assert!(got.starts_with("MANIFEST_INVALID: `"), "{yaml}: {got}");
        assert!(got.contains("is a path of the platform"), "{yaml}: {got}");
    }
}

#[tokio::test]
async fn default_export_needs_a_valid_project_name() {
    let files = [INDEX, ("epsilon.yaml", "project: 2.shop")];
    let got = summary(planned(&files, &[entry("index.js", &["default"], &[])], &[]).await);
    assert!(
        got.starts_with(
            "MANIFEST_INVALID: the default export takes the project's name, but `2.shop`"
        ),
        "{got}"
    );
    assert!(got.contains("`export: default`"), "{got}");
}

#[tokio::test]
async fn load_error_is_reported_with_its_stack() {
    let thrown = json!({"entry": "index.js", "error": {"message": "no db", "stack": "Error: no db\n    at index.js:3:9"},
        "exports": [], "files": [], "dynamic": []});
    let err = planned(&[INDEX], &[thrown], &[]).await.unwrap_err();
    assert_eq!(err.code, "LOAD_FAILED");
    assert_eq!(err.message, "`index.js` could not be loaded: Error: no db\n    at index.js:3:9");
    let err = planned(&[INDEX], &[entry("other.js", &["a"], &[])], &[]).await.unwrap_err();
    assert_eq!(err.code, "LOAD_FAILED", "an answer about another file");
}

#[tokio::test]
async fn a_listed_package_that_is_missing_is_installed() {
    let package = r#"{"dependencies":{"redis":"*","@a/b":"*"},"devDependencies":{"dev":"*"}}"#;
    for (module, want) in [
        ("redis", "`redis` is in package.json and not installed: `npm install` in"),
        ("redis/client", "`redis` is in package.json"),
        ("@a/b/c", "`@a/b` is in package.json"),
        ("@a/c", "add `@a/c` to the `dependencies`"),
        ("dev", "add `dev` to the `dependencies`"),
        ("./redis", "is the file there"),
    ] {
        let stack = format!("Error: Cannot find module '{module}'\n  code: 'MODULE_NOT_FOUND'");
        let mut broken = entry("index.js", &[], &[]);
        broken["error"] = json!({"message": stack, "stack": stack});
        let files = [("index.js", ""), ("package.json", package)];
        let got = summary(planned(&files, &[broken], &[]).await);
        assert!(got.contains(want), "{module}: {got}");
    }
}

#[tokio::test]
async fn a_wrong_config_in_code_names_file_and_export() {
    let mut index = entry("index.js", &["hello"], &[]);
    index["exports"][0]["config"] = json!({"memmory": "1GiB"});
    let err = planned(&[INDEX], &[index], &[]).await.unwrap_err();
    assert_eq!(
        err.message,
        "index.js: export `hello`: `config.memmory` is an unknown key; did you mean `memory`?"
    );
}

#[tokio::test]
async fn bare_duration_in_code_is_noted_unless_overridden() {
    let mut index = entry("index.js", &["hello"], &[]);
    index["exports"][0]["config"] = json!({"timeout": 30, "stopGrace": "5s"});
    let got = summary(planned(&[INDEX], &[index.clone()], &[]).await);
    assert_eq!(
        got,
        "hello=index.js#hello; `timeout: 30` of `hello` is 30 ms, as every bare number; write `30s` if seconds are meant"
    );
    let file = ("epsilon.yaml", "functions: {hello: {timeout: 30s}}");
    assert_eq!(summary(planned(&[INDEX, file], &[index], &[]).await), "hello=index.js#hello");
}

#[tokio::test]
async fn helper_like_exports_are_noted_as_public() {
    let mut index = entry("index.js", &["add", "hello"], &[]);
    index["exports"][0]["helper"] = json!("(a, \u{1b}b)");
    let got = summary(planned(&[INDEX], &[index.clone()], &[]).await);
    assert!(
        got.contains("a public address, also what looks like a helper: `add(a, \u{fffd}b)`. Move"),
        "{got}"
    );
    // Named on purpose; or helpers and handlers look alike, as in minified code.
    let file = ("epsilon.yaml", "functions: {add: {}, hello: {}}");
    assert_eq!(
        summary(planned(&[INDEX, file], &[index.clone()], &[]).await),
        "add=index.js#add; hello=index.js#hello"
    );
    index["exports"][1]["helper"] = json!("(t)");
    assert_eq!(
        summary(planned(&[INDEX], &[index], &[]).await),
        "add=index.js#add; hello=index.js#hello"
    );
}

#[tokio::test]
async fn only_keeps_what_it_names() {
    let entries = [entry("index.js", &["hello", "bye"], &[])];
    assert_eq!(summary(planned(&[INDEX], &entries, &["bye"]).await), "bye=index.js#bye");
    let got = summary(planned(&[INDEX], &entries, &["bye", "helo"]).await);
    assert_eq!(
        got,
        "FUNCTION_NOT_FOUND: the project has no function `helo` (did you mean `hello`?)"
    );
    let got = summary(planned(&[INDEX], &entries, &["purchase"]).await);
    assert_eq!(
        got,
        "FUNCTION_NOT_FOUND: the project has no function `purchase` (it has `bye`, `hello`)"
    );
}

#[tokio::test]
async fn only_is_not_stopped_by_what_it_leaves_out() {
    let yaml = ("epsilon.yaml", "functions: {a: {}, b: {entry: b.js}}");
    let broken = json!({"entry": "b.js", "error": {"message": "x", "stack": null}, "exports": [], "files": [], "dynamic": []});
    let entries = [entry("index.js", &["a", "b"], &[]), broken];
    let files = [INDEX, ("b.js", ""), yaml];
    assert_eq!(summary(planned(&files, &entries, &["a"]).await), "a=index.js#a");
    assert!(summary(planned(&files, &entries, &[]).await).starts_with("LOAD_FAILED: `b.js`"));
}

/// Two functions with a file of their own each, one that both reach, and files that no module
/// imports.
const SHOP: [(&str, &str); 8] = [
    ("a.js", "1"),
    ("b.js", "1"),
    ("lib/b.js", "1"),
    ("lib/both.js", "1"),
    ("worker.js", "1"),
    ("prices.json", "1"),
    ("package.json", "{}"),
    ("epsilon.yaml", "functions: {a: {entry: a.js}, b: {entry: b.js}}"),
];

async fn contents(files: &[(&str, &str)], dynamic: bool) -> BTreeMap<String, ContentDigest> {
    let mut a = entry("a.js", &["a"], &["a.js", "lib/both.js"]);
    if dynamic {
        a["dynamic"] = json!([{"file": "a.js", "line": 1, "text": "require(name)"}]);
    }
    let entries = [a, entry("b.js", &["b"], &["b.js", "lib/b.js", "lib/both.js"])];
    let plan = planned(files, &entries, &[]).await.unwrap();
    plan.functions
        .into_iter()
        .map(|function| (function.name.to_string(), function.content))
        .collect()
}

/// Each row is a named test: a file and its new content => the rebuilt functions.
macro_rules! changes {
    ($($name:ident: $path:expr, $content:expr, dynamic: $dynamic:expr => $want:expr;)*) => {$(
        #[tokio::test]
        async fn $name() {
            let before = contents(&SHOP, $dynamic).await;
            let mut files = SHOP.to_vec();
            files.retain(|(path, _)| *path != $path);
            files.push(($path, $content));
            let after = contents(&files, $dynamic).await;
            let changed: Vec<_> = before.iter().filter(|(name, digest)| after.get(*name) != Some(digest)).collect();
            let changed: Vec<_> = changed.into_iter().map(|(name, _)| name.as_str()).collect();
            let want: &[&str] = &$want;
            assert_eq!(changed, want);
        }
    )*};
}

changes! {
    an_empty_folder_makes_all_anew: "uploads/", "", dynamic: false => ["a", "b"];
    nothing_changed: "a.js", "1", dynamic: false => [];
    own_entry: "a.js", "2", dynamic: false => ["a"];
    own_module: "lib/b.js", "2", dynamic: false => ["b"];
    shared_module: "lib/both.js", "2", dynamic: false => ["a", "b"];
    module_that_nobody_imports: "worker.js", "2", dynamic: false => ["a", "b"];
    data_file: "prices.json", "2", dynamic: false => ["a", "b"];
    new_file: "template.html", "", dynamic: false => ["a", "b"];
    any_file_when_names_are_computed: "lib/b.js", "2", dynamic: true => ["a", "b"];
    own_setting: "epsilon.yaml", "functions: {a: {entry: a.js}, b: {entry: b.js, timeout: 1s}}", dynamic: false => ["b"];
    manifest_without_a_new_meaning: "epsilon.yaml", "# hi\nfunctions: {b: {entry: b.js}, a: {entry: ./a.js}}",
        dynamic: false => [];
}

#[tokio::test]
async fn names_are_content_and_images_are_not_files() {
    let one = contents(&SHOP, false).await;
    assert_ne!(one["a"], one["b"]);

    let container = async |yaml: &str, extra: &str| {
        let files = [("epsilon.yaml", yaml), ("Dockerfile", ""), ("x", extra)];
        planned(&files, &[], &[]).await.unwrap().functions[0].content
    };
    let image = "runtime: container\nimage: a";
    assert_eq!(container(image, "1").await, container(image, "2").await);
    assert_ne!(container(image, "1").await, container("runtime: container\nimage: b", "1").await);
    assert_ne!(
        container("runtime: container", "1").await,
        container("runtime: container", "2").await
    );
}

/// Two functions of one file, distinguished by a module graph.
async fn split(files: &[(&str, &str)], code: &str) -> BTreeMap<String, ContentDigest> {
    let mut index = entry("index.js", &["a", "b"], &["index.js", "lib/a.js", "lib/b.js"]);
    index["exports"][0]["reach"] = json!({"files": ["index.js", "lib/a.js"], "code": "1"});
    index["exports"][1]["reach"] = json!({"files": ["index.js", "lib/b.js"], "code": code});
    let plan = planned(files, &[index], &[]).await.unwrap();
    plan.functions.into_iter().map(|f| (f.name.to_string(), f.content)).collect()
}

#[tokio::test]
async fn functions_of_one_file_change_with_their_reach() {
    let files = [("index.js", "1"), ("lib/a.js", "1"), ("lib/b.js", "1"), ("data.json", "1")];
    let before = split(&files, "1").await;
    for (path, want) in [
        ("index.js", &["a", "b"][..]),
        ("lib/a.js", &["a"]),
        ("lib/b.js", &["b"]),
        ("data.json", &["a", "b"]),
    ] {
        let files = files.map(|(p, text)| if p == path { (p, "2") } else { (p, text) });
        let after = split(&files, "1").await;
        let changed: Vec<_> = before.keys().filter(|name| before[*name] != after[*name]).collect();
        assert_eq!(changed, want, "{path}");
    }
    let after = split(&files, "2").await;
    assert!(
        before["a"] == after["a"] && before["b"] != after["b"],
        "other code is left of the same files"
    );
}

#[tokio::test]
async fn dynamic_imports_are_noted_with_file_and_line() {
    let mut index = entry("index.js", &["a", "b"], &["index.js"]);
    index["dynamic"] = json!([{"file": "lib/x.js", "line": 3, "text": "require(name)"}]);
    let plan = planned(&[INDEX], &[index], &[]).await.unwrap();
    assert!(plan.unknown[0].contains("loaded at lib/x.js:3: require(name)"), "{:?}", plan.unknown);
}
