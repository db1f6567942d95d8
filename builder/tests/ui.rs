//! Golden files: each `ui/NAME.yaml` is the `epsilon.yaml` of one small project; beside it is its
//! expansion (`.expanded.json`) or the developer's error (`.err`).
//!
//! After a change of a text, `EPSILON_GOLDEN=write cargo test -p epsilon-builder --test ui`
//! rewrites them: read the diff.

#![allow(clippy::unwrap_used)] // tests may; clippy does not see that these functions are some

use epsilon_api::{body, build::BuildError};
use epsilon_builder::inspection::Inspection;
use epsilon_builder::manifest::origin::Origin;
use epsilon_builder::manifest::{Ceilings, Manifest};
use epsilon_builder::source::{Source, SourceLimits};
use epsilon_builder::{plan, source};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use std::{fs, path::Path};

const FILES: [(&str, &str); 7] = [
    ("package.json", r#"{"name":"@acme/shop"}"#),
    ("index.js", ""),
    ("src/checkout.js", ""),
    ("lib/broken.js", ""),
    ("README.md", ""),
    ("Dockerfile", ""),
    ("api/Dockerfile", ""),
];

fn inspection() -> Inspection {
    let export =
        |name: &str, config: Value| json!({"name": name, "signature": "express", "config": config});
    let entry = |path: &str, exports: Value| json!({"entry": path, "error": null, "exports": exports, "files": [path], "dynamic": []});
    let config = json!({"timeout": 5000, "memory": "512MiB", "env": {"FROM": "code", "KEPT": 1.5}, "idempotent": true});
    let broken = json!({
        "entry": "lib/broken.js",
        "error": {"message": "no such thing", "stack": "Error: no such thing\n    at broken.js:1:7"},
        "exports": [], "files": [], "dynamic": [],
    });
    let entries = json!({"entries": [
        entry("index.js", json!([
            export("hello", Value::Null), export("goodbye", config), export("default", Value::Null),
        ])),
        entry("src/checkout.js", json!([export("checkout", json!({})), export("handler", Value::Null)])),
        broken,
    ]});
    Inspection::parse(entries.to_string().as_bytes()).unwrap()
}

async fn project(yaml: &str, work: &Path) -> Source {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (path, content) in FILES.into_iter().chain([("epsilon.yaml", yaml)]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    let archive = tar.into_inner().unwrap().finish().unwrap();
    source::receive(body::full(archive), &SourceLimits::default(), work).await.unwrap()
}

fn expand(source: &Source) -> Result<String, BuildError> {
    let manifest = Manifest::read(source, Some("folder"), &Ceilings::default())?;
    let plan = plan::plan(&manifest, source, &inspection(), &[])?;
    let functions: serde_json::Map<_, _> = plan
        .functions
        .iter()
        .map(|function| {
            let origin = match &function.origin {
                Origin::Code => json!("code"),
                Origin::Image(reference) => json!({"image": reference}),
                Origin::Dockerfile(path) => json!({"dockerfile": path}),
            };
            (function.name.to_string(), json!({"origin": origin, "spec": function.spec}))
        })
        .collect();
    let expanded = json!({
        "project": manifest.project,
        "entries": manifest.entries(),
        "functions": functions,
        "notes": plan.notes,
    });
    Ok(format!("{expanded:#}\n"))
}

#[tokio::test]
async fn every_manifest_gives_the_golden_beside_it() {
    let work = tempfile::tempdir().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ui");
    let write = std::env::var_os("EPSILON_GOLDEN").is_some_and(|flag| flag == "write");
    let mut manifests: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .collect();
    manifests.sort();
    assert!(manifests.len() > 80, "{} manifests", manifests.len());

    let mut wrong = Vec::new();
    for path in manifests {
        let source = project(&fs::read_to_string(&path).unwrap(), work.path()).await;
        let (ending, other, got) = match expand(&source) {
            Ok(expanded) => ("expanded.json", "err", expanded),
            Err(error) => {
                let hint = error.hint.map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
                ("err", "expanded.json", format!("{}: {}\n{hint}", error.code, error.message))
            }
        };
        let golden = path.with_extension(ending);
        if write {
            fs::write(&golden, &got).unwrap();
            let _ = fs::remove_file(path.with_extension(other));
        }
        let want = fs::read_to_string(&golden).unwrap_or_default();
        if got != want {
            wrong.push(format!("{}\n--- want\n{want}--- got\n{got}", golden.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
