//! The runtime base: made once per engine, found after that, and usable.

use super::lab::{Lab, docker};
use epsilon_api::admin::Step;

#[tokio::test(flavor = "multi_thread")]
async fn a_second_builder_finds_what_the_first_made() {
    let first = Lab::new().await;
    let made = first.app().ensure_runtime(first.log()).await.unwrap();
    let second = Lab::new().await;
    let found = second.app().ensure_runtime(second.log()).await.unwrap();
    assert_eq!(made, found);
    assert!(second.done(Step::Runtime).starts_with("cached"), "{}", second.done(Step::Runtime));
    assert_eq!(second.lines(), "");
    let id = |reference: &str| docker(&["image", "inspect", "-f", "{{.Id}}", reference]);
    assert_eq!(id(&made), id("epsilon/runtime-node:current"));
    first.end().await;
    second.end().await;
}

/// The usual base under an id of its own, so that no runtime is based on it.
fn fresh_base(runtime: &str, tag: &str) -> String {
    let name = format!("epsilon-lab:{tag}");
    let container = docker(&["create", runtime]);
    docker(&["commit", "-m", "lab", &container, &name]);
    docker(&["rm", &container]);
    name
}

#[tokio::test(flavor = "multi_thread")]
async fn builders_at_the_same_time_make_one_base() {
    let usual = Lab::new().await;
    let base = usual.app().ensure_runtime(usual.log()).await.unwrap();
    let base = fresh_base(&base, "together");
    let settings = format!("{{runtime_image: '{base}'}}");
    let (one, two) = (Lab::with(&settings).await, Lab::with(&settings).await);
    let (first, second, third) = tokio::join!(
        one.app().ensure_runtime(one.log()),
        one.app().ensure_runtime(one.log()),
        two.app().ensure_runtime(two.log()),
    );
    let first = first.unwrap();
    assert_eq!(first, second.unwrap());
    assert_eq!(first, third.unwrap());
    let making = |lab: &Lab| lab.lines().matches("the wrapper's packages …").count();
    assert_eq!(making(&one) + making(&two), 1);
    usual.app().ensure_runtime(usual.log()).await.unwrap();
    docker(&["rmi", &first, &base]);
    for lab in [one, two, usual] {
        lab.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn base_contains_only_what_functions_and_installs_need() {
    let lab = Lab::new().await;
    let runtime = lab.app().ensure_runtime(lab.log()).await.unwrap();
    let run = |script: &str| {
        docker(&["run", "--rm", "--network", "none", "--entrypoint", "sh", &runtime, "-c", script])
    };
    assert!(run("node --version").starts_with("v24."));
    assert!(run("npm --version").split('.').count() >= 3);
    assert_eq!(
        run("id -u; ls -d /app /epsilon/wrapper/main.js"),
        "65532\n/app\n/epsilon/wrapper/main.js"
    );
    run("node -e 'require(\"/epsilon/wrapper/node_modules/express\")'");
    run("grep -q 'BEGIN CERTIFICATE' /etc/ssl/certs/ca-certificates.crt");
    assert_eq!(run("ls /var/lib/apt/lists 2>/dev/null | wc -l"), "0");
    assert_eq!(run("command -v python3 gcc || true"), "");
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_operators_image_is_reported() {
    let lab = Lab::with("{runtime_image: 'localhost:1/nothing:1', pull_timeout: 5s}").await;
    let err = lab.app().ensure_runtime(lab.log()).await.unwrap_err();
    assert_eq!(err.code, "RUNTIME_FAILED");
    assert!(err.message.contains("localhost:1/nothing:1"), "{}", err.message);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_image_gets_the_wrapper_on_top() {
    let lab = Lab::new().await;
    let base = lab.app().ensure_runtime(lab.log()).await.unwrap();
    let base = fresh_base(&base, "on-top");
    let other = Lab::with(&format!("{{runtime_image: '{base}'}}")).await;
    let own = other.app().ensure_runtime(other.log()).await.unwrap();
    assert_ne!(own, base);
    let layers = |image: &str| docker(&["image", "inspect", "-f", "{{len .RootFS.Layers}}", image]);
    let count: u32 = layers(&base).parse().unwrap();
    assert_eq!(layers(&own), (count + 1).to_string());
    // Later tests, and others on this engine, expect the usual one.
    lab.app().ensure_runtime(lab.log()).await.unwrap();
    docker(&["rmi", &own, &base]);
    lab.end().await;
    other.end().await;
}

/// The usual base with an `npm` that never ends, like the real one without a network.
fn base_whose_npm_hangs(runtime: &str) -> String {
    let name = "epsilon-lab:npm-hangs";
    let npm = r#"#!/bin/sh\necho fetching express >&2\nsleep 1000 &\nwait\n"#;
    let script = format!(
        "rm /usr/local/bin/npm; printf '{npm}' >/usr/local/bin/npm; chmod 755 /usr/local/bin/npm"
    );
    let create = ["create", "--user", "0", "--entrypoint", "sh", runtime, "-c", &script];
    let container = docker(&create);
    docker(&["start", "--attach", &container]);
    docker(&["commit", "-m", "lab", &container, name]);
    docker(&["rm", &container]);
    name.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_install_is_cancelled_and_its_container_removed() {
    let usual = Lab::new().await;
    let base = usual.app().ensure_runtime(usual.log()).await.unwrap();
    let base = base_whose_npm_hangs(&base);
    // A tenth of it is npm's: enough for the container to start and say a line.
    let lab = Lab::with(&format!("{{runtime_image: '{base}', runtime_timeout: 200s}}")).await;
    let err = lab.app().ensure_runtime(lab.log()).await.unwrap_err();
    assert_eq!(err.code, "RUNTIME_FAILED");
    let text =
        "the wrapper's packages: not done within 20s and given up (last line: fetching express)";
    assert_eq!(err.message, text);
    assert!(err.hint.unwrap().contains("npm's registry did not answer"));
    // Fails when a container is left.
    lab.end().await;
    docker(&["rmi", &base]);
    usual.app().ensure_runtime(usual.log()).await.unwrap();
    usual.end().await;
}
