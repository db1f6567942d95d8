//! Images in a real registry: Debian's `docker-registry`, started by the test.

use super::lab::{Lab, Served, docker, exists, until};
use epsilon_api::admin::Step;
use std::{
    fs,
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

struct Registry {
    process: Child,
    data: TempDir,
    name: String,
}

impl Registry {
    async fn start() -> Self {
        let binary = "/usr/bin/docker-registry";
        assert!(exists(binary), "install the package `docker-registry`");
        let data = tempfile::tempdir().unwrap();
        // Free a moment ago; the registry cannot be told to choose one itself.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let root = data.path().join("blobs");
        let settings = format!(
            "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {root:?} }} }}\n\
             http: {{ addr: '127.0.0.1:{port}' }}\n"
        );
        let file = data.path().join("config.yml");
        fs::write(&file, settings).unwrap();
        let process = Command::new(binary)
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("the registry", || async move { TcpStream::connect(("127.0.0.1", port)).is_ok() })
            .await;
        Self { process, data, name: format!("127.0.0.1:{port}") }
    }

    /// Bytes of all blobs.
    fn blobs(&self) -> usize {
        let folder = self.data.path().join("blobs/docker/registry/v2/blobs/sha256");
        let Ok(groups) = fs::read_dir(folder) else { return 0 };
        groups.map(|group| fs::read_dir(group.unwrap().path()).unwrap().count()).sum()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const CODE: (&str, &str) =
    ("index.js", "exports.hello = (req, res) => res.send('from a registry');\n");

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_image_can_be_pulled_and_run_and_is_not_pushed_twice() {
    let registry = Registry::start().await;
    let lab = Lab::with(&format!("{{registry: '{}/fleet'}}", registry.name)).await;
    let files = [("epsilon.yaml", "project: lab-registry\n"), CODE];
    let built = lab.build(&files).await.unwrap();
    let image = &built.functions[0].image;
    let prefix = format!("{}/fleet/lab-registry/hello@sha256:", registry.name);
    assert!(image.reference.starts_with(&prefix), "{}", image.reference);
    docker(&["pull", "-q", &image.reference]);
    assert_eq!(docker(&["image", "inspect", "-f", "{{.Id}}", &image.reference]), image.digest);
    assert_eq!(Served::run(&image.reference).get("/"), "from a registry");

    let blobs = registry.blobs();
    let again = lab.build(&files).await.unwrap();
    assert_eq!(lab.done(Step::Image), "0 composed, 1 unchanged");
    assert_eq!((built, registry.blobs()), (again, blobs));

    // Another function: its code, configuration and manifest are new; the base is mounted.
    let other =
        [("epsilon.yaml", "project: lab-other\n"), ("index.js", "exports.hi = (q, s) => s.end();")];
    lab.build(&other).await.unwrap();
    assert_eq!(registry.blobs(), blobs + 3);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_source_has_the_same_digest_in_every_place() {
    let registry = Registry::start().await;
    let remote = Lab::with(&format!("{{registry: '{}'}}", registry.name)).await;
    let local = Lab::new().await;
    let files = [("epsilon.yaml", "project: lab-places\n"), CODE];
    let (there, here) = (remote.build(&files).await.unwrap(), local.build(&files).await.unwrap());
    assert_eq!(there.functions[0].image.digest, here.functions[0].image.digest);
    remote.end().await;
    local.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_a_dockerfile_is_pushed_too() {
    let registry = Registry::start().await;
    let lab = Lab::with(&format!("{{registry: '{}'}}", registry.name)).await;
    let runtime = lab.app().ensure_runtime(lab.log()).await.unwrap();
    let yaml = format!(
        "project: lab-foreign\nruntime: container\nfunctions:\n  web: {{ image: '{runtime}' }}\n"
    );
    let built = lab.build(&[("epsilon.yaml", &yaml)]).await.unwrap();
    let image = &built.functions[0].image;
    docker(&["pull", "-q", &image.reference]);
    assert_eq!(docker(&["image", "inspect", "-f", "{{.Id}}", &image.reference]), image.digest);

    // And pulled by a builder that only knows its name.
    docker(&["rmi", &image.reference]);
    let local = Lab::new().await;
    let (reference, digest) = (&image.reference, &image.digest);
    let yaml = format!(
        "project: lab-pull\nruntime: container\nfunctions:\n  web: {{ image: '{reference}' }}\n"
    );
    let pulled = local.build(&[("epsilon.yaml", &yaml)]).await.unwrap();
    assert_eq!(&pulled.functions[0].image.digest, digest);
    docker(&["rmi", reference]);
    local.end().await;
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_not_there_is_told() {
    let lab = Lab::with("{registry: '127.0.0.1:1', registry_timeout: 5s}").await;
    let err = lab.build(&[("epsilon.yaml", "project: lab-nowhere\n"), CODE]).await.unwrap_err();
    assert_eq!(err.code, "REGISTRY_FAILED");
    lab.end().await;
}
