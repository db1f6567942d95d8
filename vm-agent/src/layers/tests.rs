//! From a version to directories: each source, what happens when one fails, and which files
//! are left.

mod docker;
mod registry;
mod scripted;

use super::testing::{SmallDisk, Tar, digest};
use super::*;
use crate::{
    config::{Config, Settings},
    engine::fake::{FakeEngine, Fault, Verb},
};
use epsilon_api::{
    function::{FunctionSpec, ImageRef, Parts, Runtime},
    ids::{DeploymentId, FunctionName, ProjectName, VersionNumber},
    units::Bytes as Size,
};
use epsilon_bootstrap::settings::Section as _;
use prometheus::Registry;
use std::fs;
use tempfile::TempDir;

/// A layer store in a directory of its own, with an engine without images.
struct World {
    layers: Layers,
    engine: FakeEngine,
    metrics: Registry,
    folder: PathBuf,
    _home: TempDir,
}

impl World {
    fn new(settings: &str) -> Self {
        let home = TempDir::new().unwrap();
        let folder = home.path().to_owned();
        Self::at(home, &folder, settings)
    }

    fn at(home: TempDir, folder: &Path, settings: &str) -> Self {
        let settings = Settings::read(settings).unwrap();
        Self::with(home, folder, &settings.check(folder).unwrap())
    }

    fn with(home: TempDir, folder: &Path, config: &Config) -> Self {
        let metrics = Registry::new();
        let counts = Counts::register(&metrics).unwrap();
        let vm = VmId::parse("test").unwrap();
        let layers = Layers::open(config, &vm, counts).unwrap();
        let folder = folder.join("vm/layers");
        Self { layers, engine: FakeEngine::new(), metrics, folder, _home: home }
    }

    async fn ensure(&self, version: &Version) -> Result<Code, LayersError> {
        self.layers.ensure(&self.engine, version).await
    }

    /// `epsilon_layer_fetches_total{source,outcome}`.
    fn fetches(&self, source: &str, outcome: &str) -> u64 {
        let found = self.metrics.gather().into_iter();
        let metrics = found.filter(|family| family.name() == "epsilon_layer_fetches_total");
        let mut metrics = metrics.flat_map(|family| family.get_metric().to_vec());
        let labels = [outcome, source]; // by name
        let found = metrics.find(|metric| {
            metric.get_label().iter().map(prometheus::proto::LabelPair::value).eq(labels)
        });
        found.map_or(0, |metric| metric.get_counter().get_value() as u64)
    }

    /// The entries of the store's directory, except the boot file.
    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().file_name());
        let names = names.map(|name| name.into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != "boot").collect();
        names.sort();
        names
    }
}

/// A layer with one file.
fn layer(file: &str, content: &str) -> Tar {
    let mut tar = Tar::default();
    tar.folder("app/").file(&format!("app/{file}"), content);
    tar
}

/// A version of these layers; `at` is the repository that they are in.
fn version(name: &str, at: Option<&str>, layers: &[&Tar]) -> Version {
    let image = digest(name.as_bytes());
    let reference = match at {
        Some(repository) => format!("{repository}@{image}"),
        None => format!("epsilon/{name}:1"),
    };
    let layers = layers.iter().map(|tar| ImageLayer {
        diff_id: tar.diff_id(),
        blob: at.map(|_| {
            let gzip = tar.gzip();
            Blob { digest: digest(&gzip), bytes: Size(gzip.len() as u64) }
        }),
    });
    Version {
        parts: Some(Parts {
            base: ImageRef { reference: "base".into(), digest: "base".into() },
            layers: layers.collect(),
        }),
        function: FunctionName::parse(name).unwrap(),
        number: VersionNumber::FIRST,
        project: ProjectName::parse("test").unwrap(),
        deployment: DeploymentId::random(),
        image: ImageRef { reference, digest: image },
        spec: FunctionSpec::new(Runtime::Node, "index.js", "hello"),
        created_at: jiff::Timestamp::now(),
    }
}

fn put_in_builder_cache(cache: &Path, tar: &Tar) -> PathBuf {
    let path = cache.join(format!("{}.tar", tar.diff_id().strip_prefix("sha256:").unwrap()));
    fs::write(&path, tar.bytes()).unwrap();
    path
}

/// The files that the code would see, bottom first.
fn contents(code: &Code) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for folder in code.folders() {
        let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
        let mut files: Vec<_> = entries
            .map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                (name, fs::read_to_string(entry.path()).unwrap())
            })
            .collect();
        files.sort();
        all.extend(files);
    }
    all
}

fn file(name: &str, content: &str) -> (String, String) {
    (name.to_owned(), content.to_owned())
}

fn text_of(err: &LayersError) -> String {
    Chain(err).to_string()
}

#[tokio::test]
async fn layers_are_taken_from_builder_cache_once() {
    let cache = TempDir::new().unwrap();
    let world = World::new(&format!("{{layer_cache: {:?}}}", cache.path()));
    let packages = layer("express.js", "express");
    let (one, two) = (layer("index.js", "one"), layer("index.js", "two"));
    let tars = [&packages, &one, &two].map(|tar| put_in_builder_cache(cache.path(), tar));
    let first = version("one", None, &[&packages, &one]);
    let second = version("two", None, &[&packages, &two]);

    let code = world.ensure(&first).await.unwrap();
    assert_eq!(contents(&code), [file("express.js", "express"), file("index.js", "one")]);
    let other = world.ensure(&second).await.unwrap();
    assert_eq!(contents(&other), [file("express.js", "express"), file("index.js", "two")]);
    assert_eq!(world.fetches("shelf", "ok"), 3, "shared layers are unpacked once");
    assert_eq!(code.folders().next(), other.folders().next());

    // Present layers need no source.
    tars.iter().for_each(|tar| fs::remove_file(tar).unwrap());
    assert_eq!(contents(&world.ensure(&first).await.unwrap()).len(), 2);
    assert!(world.layers.lease_present(&second).is_some());
    assert_eq!(world.fetches("shelf", "ok"), 3);
}

#[tokio::test]
async fn concurrent_starts_share_one_fetch() {
    let cache = TempDir::new().unwrap();
    let home = TempDir::new().unwrap();
    let folder = home.path().to_owned();
    let settings = Settings { layer_cache: Some(cache.path().to_owned()), ..Settings::default() };
    let config = Config { layers_at_once: 1, ..settings.check(&folder).unwrap() };
    let world = World::with(home, &folder, &config);
    let (packages, code) = (layer("a.js", "a"), layer("index.js", "x"));
    for tar in [&packages, &code] {
        put_in_builder_cache(cache.path(), tar);
    }
    let version = version("hello", None, &[&packages, &code]);
    let all = futures_util::future::join_all((0..20).map(|_| world.ensure(&version))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(world.fetches("shelf", "ok"), 2);
}

#[tokio::test]
async fn without_layer_sources_code_comes_from_image() {
    let world = World::new("{}");
    let version = version("hello", None, &[&layer("a.js", "a"), &layer("index.js", "x")]);
    world.engine.add_image("epsilon/hello:1", Arc::new(|_| Box::pin(async { 0 })));
    world.engine.add_code(
        "epsilon/hello:1",
        Tar::default().file("app/a.js", "a").file("app/index.js", "x").bytes(),
    );
    // A container that was created, and then cannot be read, is removed.
    world.engine.script(Verb::CodeOf, Fault::Refuse);
    let err = world.ensure(&version).await.unwrap_err();
    assert!(text_of(&err).contains("refused"), "{err}");
    assert!(world.engine.containers().is_empty());

    let code = world.ensure(&version).await.unwrap();
    assert_eq!(contents(&code), [file("a.js", "a"), file("index.js", "x")]);
    assert!(world.engine.containers().is_empty());
    let image = version.image.digest.replace(':', "-").replace("sha256", "image");
    assert_eq!(world.names(), [image]);
    world.ensure(&version).await.unwrap();
    assert_eq!(world.fetches("engine", "ok"), 1);
    // An agent that adopts an instance leases what may be mounted there.
    assert_eq!(contents(&world.layers.lease_present(&version).unwrap()), contents(&code));

    let absent = super::tests::version("absent", None, &[&layer("b.js", "b")]);
    let err = world.ensure(&absent).await.unwrap_err();
    assert!(matches!(&err, LayersError::Shared(err) if matches!(**err, LayersError::Engine(_))));
}

#[tokio::test]
async fn unfit_layer_is_fetched_once_and_leaves_nothing() {
    let cache = TempDir::new().unwrap();
    let world = World::new(&format!("{{layer_cache: {:?}}}", cache.path()));
    let mut tar = layer("index.js", "x");
    tar.file("app/.wh.old.js", "");
    put_in_builder_cache(cache.path(), &tar);
    let version = version("hello", None, &[&tar]);
    for _ in 0..3 {
        let err = world.ensure(&version).await.unwrap_err();
        assert!(err.is_unfit() && text_of(&err).contains("lower layer"), "{err}");
    }
    assert_eq!((world.fetches("shelf", "unfit"), world.names()), (1, vec![]));
}

#[tokio::test]
async fn corrupt_builder_cache_entry_is_skipped() {
    let cache = TempDir::new().unwrap();
    let world = World::new(&format!("{{layer_cache: {:?}}}", cache.path()));
    let tar = layer("index.js", "x");
    let path = put_in_builder_cache(cache.path(), &tar);
    // Truncated, other bytes, another tar, an unfit one under this name.
    let good = tar.bytes();
    let mut flipped = good.clone();
    let middle = good.iter().position(|byte| *byte == b'x').unwrap();
    flipped[middle] ^= 1;
    let whiteout = Tar::default().file("app/.wh.x", "").bytes();
    let bad = [good[..600].to_vec(), flipped, layer("other.js", "y").bytes(), whiteout];
    let version = version("hello", None, &[&tar]);
    for (n, bytes) in bad.into_iter().enumerate() {
        fs::write(&path, bytes).unwrap();
        let err = world.ensure(&version).await.unwrap_err();
        assert!(!err.is_unfit(), "{n}: nothing is known of the layer itself: {err}");
        assert_eq!((world.fetches("shelf", "corrupt"), world.names()), (n as u64 + 1, vec![]));
    }
    fs::write(&path, good).unwrap();
    assert_eq!(contents(&world.ensure(&version).await.unwrap()), [file("index.js", "x")]);
}

#[tokio::test]
async fn full_disk_is_reported_and_leaves_nothing() {
    let Some(disk) = SmallDisk::mount(1 << 20) else { return };
    let cache = TempDir::new().unwrap();
    let home = TempDir::new().unwrap();
    let settings = format!("{{layer_cache: {:?}}}", cache.path());
    let world = World::at(home, disk.path(), &settings);
    let (small, large) = (layer("small.js", "s"), layer("large.js", &"x".repeat(600 << 10)));
    for tar in [&small, &large] {
        put_in_builder_cache(cache.path(), tar);
    }
    fs::write(disk.join("ballast"), vec![0; 500 << 10]).unwrap();
    let version = version("hello", None, &[&large]);
    let err = world.ensure(&version).await.unwrap_err();
    let text = text_of(&err);
    for part in ["no room", "vm_agent.layers_size", "free space", "No space left"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!err.is_unfit());
    assert_eq!((world.names(), world.fetches("shelf", "disk")), (vec![], 1));
    // A small layer still fits, and when there is space again, all do.
    let fits = super::tests::version("small", None, &[&small]);
    assert!(world.ensure(&fits).await.is_ok());
    fs::remove_file(disk.join("ballast")).unwrap();
    assert_eq!(contents(&world.ensure(&version).await.unwrap())[0].0, "large.js");
}

#[tokio::test]
async fn full_disk_removes_unused_layers() {
    let Some(disk) = SmallDisk::mount(1 << 20) else { return };
    let cache = TempDir::new().unwrap();
    let settings = format!("{{layer_cache: {:?}}}", cache.path());
    let world = World::at(TempDir::new().unwrap(), disk.path(), &settings);
    let tars: Vec<_> = (0..3).map(|n| layer("x.js", &n.to_string().repeat(300 << 10))).collect();
    tars.iter().for_each(|tar| drop(put_in_builder_cache(cache.path(), tar)));
    let versions: Vec<_> =
        tars.iter().enumerate().map(|(n, tar)| version(&format!("f{n}"), None, &[tar])).collect();
    drop(world.ensure(&versions[0]).await.unwrap());
    let mounted = world.ensure(&versions[1]).await.unwrap();
    let large = layer("large.js", &"l".repeat(600 << 10));
    put_in_builder_cache(cache.path(), &large);
    let large = version("large", None, &[&large]);
    assert_eq!(contents(&world.ensure(&large).await.unwrap())[0].0, "large.js");
    assert!(
        world.layers.lease_present(&versions[0]).is_none()
            && world.layers.lease_present(&versions[1]).is_some()
    );
    assert_eq!(contents(&mounted).len(), 1);
    assert!(world.ensure(&versions[2]).await.is_ok(), "and the large one is removed for this one");
}

#[tokio::test]
async fn layers_stay_within_size_mounted_ones_stay() {
    let cache = TempDir::new().unwrap();
    let world = World::new(&format!("{{layer_cache: {:?}, layers_size: 1MiB}}", cache.path()));
    let tars: Vec<_> = (0..4).map(|n| layer("x.js", &n.to_string().repeat(400 << 10))).collect();
    tars.iter().for_each(|tar| drop(put_in_builder_cache(cache.path(), tar)));
    let versions: Vec<_> =
        tars.iter().enumerate().map(|(n, tar)| version(&format!("f{n}"), None, &[tar])).collect();
    let mounted = world.ensure(&versions[0]).await.unwrap();
    for version in &versions[1..] {
        drop(world.ensure(version).await.unwrap());
    }
    assert_eq!(world.names().len(), 4);
    world.layers.collect().await;
    assert!(world.layers.store.bytes() <= 1 << 20);
    let is_here: Vec<_> =
        versions.iter().map(|v| world.layers.lease_present(v).is_some()).collect();
    assert_eq!(is_here, [true, false, false, true], "the last used one and the mounted one");
    assert_eq!(contents(&mounted).len(), 1);

    // A layer that alone exceeds the limit is unfit for this machine.
    let huge = layer("huge.js", &"h".repeat(2 << 20));
    put_in_builder_cache(cache.path(), &huge);
    let err = world.ensure(&version("huge", None, &[&huge])).await.unwrap_err();
    assert!(err.is_unfit() && text_of(&err).contains("larger than 1MiB"), "{err}");
}

#[tokio::test]
async fn cancelled_fetch_leaves_no_draft_and_can_repeat() {
    let world = World::new("{pull_timeout: 2s}");
    let tar = layer("index.js", "x");
    let registry = scripted::Scripted::start(vec![scripted::Answer::Hang]).await;
    let version = version("hello", Some(&registry.repository()), &[&tar]);
    let result = tokio::time::timeout(Duration::from_millis(100), world.ensure(&version)).await;
    assert!(result.is_err(), "it hangs");
    registry.answer(&[scripted::Answer::Good(tar.gzip())]);
    assert_eq!(contents(&world.ensure(&version).await.unwrap()), [file("index.js", "x")]);
}
