//! The code of an image in this machine's Docker.

use super::*;
use crate::engine::docker::DockerEngine;
use prometheus::{HistogramOpts, HistogramVec};
use std::{
    io::Write,
    process::{Command, Stdio},
};

/// An image of one layer, removed on drop.
struct Image(ImageRef);

impl Image {
    fn new(tar: &Tar) -> Self {
        let reference = format!("epsilon-layers-test:{}", InstanceId::random());
        let mut import = Command::new("docker")
            .args(["import", "--change", "CMD [\"/none\"]", "-", &reference])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        import.stdin.take().unwrap().write_all(&tar.bytes()).unwrap();
        let output = import.wait_with_output().unwrap();
        assert!(output.status.success());
        let digest = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        Self(ImageRef { reference, digest })
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        drop(Command::new("docker").args(["rmi", "-f", &self.0.reference]).output());
    }
}

#[tokio::test]
async fn code_is_read_from_image_by_unstarted_container() {
    let home = TempDir::new().unwrap();
    let config = Settings::default().check(home.path()).unwrap();
    let seconds = HistogramVec::new(HistogramOpts::new("test", "test"), &["call"]).unwrap();
    let engine = DockerEngine::new(&config, seconds).unwrap();
    let vm = VmId::parse(&format!("layers-{}", InstanceId::random())).unwrap();
    let layers = Layers::open(&config, &vm, Counts::register(&Registry::new()).unwrap()).unwrap();

    let mut tar = layer("index.js", "x");
    tar.file("etc/passwd", "root").symlink("app/link.js", "index.js");
    let image = Image::new(&tar);
    let hello = Version { image: image.0.clone(), ..version("hello", None, &[&tar]) };
    let code = layers.ensure(&engine, &hello).await.unwrap();
    assert_eq!(contents(&code), [file("index.js", "x"), file("link.js", "x")]);

    let bare = Image::new(Tar::default().file("etc/passwd", "root"));
    let bare_version = Version { image: bare.0.clone(), ..version("bare", None, &[&tar]) };
    let err = layers.ensure(&engine, &bare_version).await.unwrap_err();
    assert!(text_of(&err).contains("/app"), "{}", text_of(&err));

    let left = engine.list(&vm).await.unwrap();
    assert!(left.is_empty(), "no container stays: {left:?}");
}
