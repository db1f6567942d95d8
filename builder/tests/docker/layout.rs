//! Images in a file: valid OCI layouts, the same bytes from every builder, loadable by an engine.

use super::lab::{Lab, Served, docker};
use epsilon_api::build::Built;
use flate2::read::GzDecoder;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fs, io::Read, path::Path};

const YAML: (&str, &str) = ("epsilon.yaml", "project: lab-layout\n");
const INDEX: (&str, &str) = (
    "index.js",
    "exports.hello = (req, res) => res.send('from a file');\nexports.bye = (req, res) => res.end();\n",
);

async fn built(file: &Path, files: &[(&str, &str)]) -> Built {
    let lab = Lab::into("{}", Some(file.to_owned())).await;
    let built = lab.build(files).await.unwrap();
    assert!(built.functions.iter().all(|function| function.parts.is_none()));
    lab.end().await;
    built
}

/// The files of a tar by name, in its order.
fn read(file: &Path) -> (Vec<String>, BTreeMap<String, Vec<u8>>) {
    let mut tar = tar::Archive::new(fs::File::open(file).unwrap());
    let mut names = Vec::new();
    let mut files = BTreeMap::new();
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let (name, mut content) = (entry.path().unwrap().display().to_string(), Vec::new());
        assert_eq!((entry.header().mtime().unwrap(), entry.header().uid().unwrap()), (0, 0));
        entry.read_to_end(&mut content).unwrap();
        names.push(name.clone());
        files.insert(name, content);
    }
    (names, files)
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    "sha256:"
        .chars()
        .chain(digest.iter().flat_map(|b| format!("{b:02x}").chars().collect::<Vec<_>>()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn layout_is_valid_reproducible_and_loadable() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one.tar"), dir.path().join("two.tar"));
    let first = built(&one, &[INDEX, YAML]).await;
    let second = built(&two, &[YAML, INDEX]).await;
    assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
    let digests =
        |built: &Built| built.functions.iter().map(|f| f.image.digest.clone()).collect::<Vec<_>>();
    assert_eq!(digests(&first), digests(&second));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left");

    let (names, files) = read(&one);
    assert_eq!(names[..3], ["oci-layout", "index.json", "manifest.json"]);
    assert_eq!(names.len(), files.len(), "nothing twice");
    let json = |name: &str| serde_json::from_slice::<Value>(&files[name]).unwrap();
    assert_eq!(json("oci-layout")["imageLayoutVersion"], "1.0.0");
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        let content = &files[&format!("blobs/{}", digest.replace(':', "/"))];
        assert_eq!(sha256(content), digest);
        assert_eq!(descriptor["size"], content.len());
        content.clone()
    };
    let mut referenced = std::collections::BTreeSet::new();
    let index = json("index.json");
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    for (at, listed) in index["manifests"].as_array().unwrap().iter().enumerate() {
        let manifest: Value = serde_json::from_slice(&blob(listed)).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        assert_eq!(manifest["config"]["digest"], first.functions[at].image.digest);
        let layers = manifest["layers"].as_array().unwrap();
        let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
        assert_eq!(layers.len(), diff_ids.len());
        for (layer, diff_id) in layers.iter().zip(diff_ids) {
            let mut plain = Vec::new();
            GzDecoder::new(&blob(layer)[..]).read_to_end(&mut plain).unwrap();
            assert_eq!(sha256(&plain), *diff_id.as_str().unwrap());
        }
        let parts = layers.iter().chain([listed, &manifest["config"]]);
        referenced.extend(parts.map(|part| part["digest"].as_str().unwrap().replace(':', "/")));
    }
    assert_eq!(referenced.len() + 3, names.len(), "nothing that no image names");
    loaded(&one, &first);
}

/// The engine loads the file and runs its image.
fn loaded(file: &Path, built: &Built) {
    let hello = built.functions.iter().find(|f| f.name.as_str() == "hello").unwrap();
    let name = hello.image.reference.rsplit_once("tar:").unwrap().1;
    docker(&["load", "-q", "-i", file.to_str().unwrap()]);
    let id = docker(&["image", "inspect", "-f", "{{.Id}}", name]);
    assert_eq!(id, hello.image.digest);
    let served = Served::run(name);
    assert_eq!(served.get("/"), "from a file");
    drop(served);
    for function in &built.functions {
        docker(&["rmi", "-f", function.image.reference.rsplit_once("tar:").unwrap().1]);
    }
}
