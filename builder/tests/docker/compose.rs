//! Function images: composed to the same bytes, usable by plain `docker run`, rebuilt only when
//! they change.

use super::lab::{Lab, Served, docker, file_of};
use epsilon_api::{admin::Step, build::Built, function::Parts};
use std::{collections::BTreeSet, process::Command};

const MANIFEST: (&str, &str) = ("epsilon.yaml", "project: lab-compose\n");
const HELLO: (&str, &str) = (
    "index.js",
    "const { text } = require('./lib/text');\nexports.hello = (req, res) => res.send(text);\n",
);
const TEXT: (&str, &str) = ("lib/text.js", "exports.text = 'hello from a layer';\n");

fn digest(built: &Built, name: &str) -> String {
    let function = built.functions.iter().find(|f| f.name.as_str() == name).unwrap();
    function.image.digest.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn same_source_gives_same_digest_on_any_builder() {
    let (one, two) = (Lab::new().await, Lab::new().await);
    let files = [MANIFEST, HELLO, TEXT];
    let first = one.build(&files).await.unwrap();
    assert_eq!(one.done(Step::Image), "1 composed, 0 unchanged");
    let again = one.build(&files).await.unwrap();
    assert_eq!(one.done(Step::Image), "0 composed, 1 unchanged");
    let elsewhere = two.build(&files).await.unwrap();
    assert_eq!(two.done(Step::Image), "1 composed, 0 unchanged");
    assert_eq!(first, again);
    assert_eq!(first, elsewhere);
    let image = &first.functions[0].image;
    assert!(image.reference.starts_with("epsilon/lab-compose/hello:"));
    assert_eq!(docker(&["image", "inspect", "-f", "{{.Id}}", &image.reference]), image.digest);
    one.end().await;
    two.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_docker_run_serves_the_function() {
    let lab = Lab::new().await;
    let built =
        lab.build(&[MANIFEST, HELLO, TEXT, (".npmrc", "//r.example/:_authToken=x\n")]).await;
    let built = built.unwrap();
    let image = &built.functions[0].image.reference;
    assert_eq!(Served::run(image).get("/"), "hello from a layer");
    assert_eq!(file_of(image, "/app/.npmrc"), None);
    assert_eq!(file_of(image, "/app/epsilon.yaml"), None);
    assert!(file_of(image, "/app/index.js").is_some());
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_function_that_changed_gets_another_image() {
    let lab = Lab::new().await;
    let yaml = "project: lab-change\nfunctions:\n  a: { entry: a.js }\n  b: { entry: b.js }\n";
    let a = ("a.js", "exports.a = (req, res) => res.send('a');");
    let b = |text: &'static str| ("b.js", text);
    let manifest = ("epsilon.yaml", yaml);
    let first = lab.build(&[manifest, a, b("exports.b = (q, s) => s.send('1');")]).await.unwrap();
    let second = lab.build(&[manifest, a, b("exports.b = (q, s) => s.send('2');")]).await.unwrap();
    assert_eq!(lab.done(Step::Image), "1 composed, 1 unchanged");
    assert_eq!(digest(&first, "a"), digest(&second, "a"));
    assert_ne!(digest(&first, "b"), digest(&second, "b"));
    lab.end().await;
}

/// A package of the project itself: no package registry is used.
const PACKAGES: [(&str, &str); 3] = [
    ("package.json", r#"{ "dependencies": { "own": "file:own" } }"#),
    ("own/package.json", r#"{ "name": "own", "version": "1.0.0" }"#),
    ("own/index.js", "module.exports = 'own';\n"),
];

#[tokio::test(flavor = "multi_thread")]
async fn image_parts_are_the_base_and_its_layers() {
    let lab = Lab::new().await;
    let runtime = lab.app().ensure_runtime(lab.log()).await.unwrap();
    let manifest = ("epsilon.yaml", "project: lab-parts\n");
    let mut files = vec![manifest, HELLO, TEXT];
    files.extend(PACKAGES);
    let built = lab.build(&files).await.unwrap();
    let function = &built.functions[0];
    let parts = function.parts.as_ref().unwrap();
    assert_eq!(parts.base.reference, runtime);
    let inspect = |image: &str, what: &str| docker(&["image", "inspect", "-f", what, image]);
    assert_eq!(parts.base.digest, inspect(&runtime, "{{.Id}}"));
    // The base's layers and those of the parts are the image's, in this order.
    let layers = |image: &str| -> Vec<String> {
        serde_json::from_str(&inspect(image, "{{json .RootFS.Layers}}")).unwrap()
    };
    let own = parts.layers.iter().map(|layer| layer.diff_id.clone());
    let all: Vec<String> = layers(&runtime).into_iter().chain(own).collect();
    assert_eq!(layers(&function.image.reference), all);
    assert_eq!(parts.layers.len(), 2);
    assert!(parts.layers.iter().all(|layer| layer.blob.is_none()));

    // Each is in the layer cache under its digest.
    let files_of = |parts: &Parts| -> BTreeSet<String> {
        parts.layers.iter().map(|l| format!("{}.tar", &l.diff_id["sha256:".len()..])).collect()
    };
    assert_eq!(lab.layer_cache(), files_of(parts));
    for name in lab.layer_cache() {
        let sum =
            Command::new("sha256sum").arg(lab.layer_cache_folder().join(&name)).output().unwrap();
        assert_eq!(&String::from_utf8(sum.stdout).unwrap()[..64], &name[..64]);
    }

    // An unchanged build reports the same.
    assert_eq!(lab.build(&files).await.unwrap(), built);
    assert_eq!(lab.done(Step::Image), "0 composed, 1 unchanged");
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_removed_is_made_again() {
    let lab = Lab::new().await;
    let files = [("epsilon.yaml", "project: lab-removed\n"), HELLO, TEXT];
    let first = lab.build(&files).await.unwrap();
    docker(&["rmi", "-f", &first.functions[0].image.reference]);
    let again = lab.build(&files).await.unwrap();
    assert_eq!(lab.done(Step::Image), "1 composed, 0 unchanged");
    assert_eq!(first, again);
    assert_eq!(Served::run(&again.functions[0].image.reference).get("/"), "hello from a layer");
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_image_transfer_method_gives_a_working_image() {
    for way in ["whole", "commit"] {
        let lab = Lab::with(&format!("{{image_transfer: {way}}}")).await;
        let manifest = format!("project: lab-{way}\n");
        let built = lab.build(&[("epsilon.yaml", &manifest), HELLO, TEXT]).await.unwrap();
        let image = &built.functions[0].image;
        assert_eq!(Served::run(&image.reference).get("/"), "hello from a layer", "{way}");
        lab.build(&[("epsilon.yaml", &manifest), HELLO, TEXT]).await.unwrap();
        assert_eq!(lab.done(Step::Image), "0 composed, 1 unchanged", "{way}");
        lab.end().await;
    }
}
