//! `runtime: container`: a Dockerfile of the project, or an existing image.

use super::lab::{Lab, Served, docker, file_of};
use epsilon_api::admin::Step;

const YAML: (&str, &str) =
    ("epsilon.yaml", "project: lab-docker\nruntime: container\nfunctions:\n  web: {}\n");
const SERVER: (&str, &str) = (
    "server.js",
    "require('http').createServer((q, s) => s.end('from a Dockerfile')).listen(process.env.PORT ?? 8080);\n",
);

async fn base() -> (Lab, String) {
    let lab = Lab::new().await;
    let runtime = lab.app().ensure_runtime(lab.log()).await.unwrap();
    (lab, runtime)
}

#[tokio::test(flavor = "multi_thread")]
async fn dockerfile_is_built_once_then_looked_up() {
    let (lab, runtime) = base().await;
    let file = format!(
        "FROM {runtime}\nCOPY . /srv/\nRUN echo a step ran\nENTRYPOINT [\"node\", \"/srv/server.js\"]\n"
    );
    let ignore = (".dockerignore", "secret.txt\n");
    let secret = ("secret.txt", "x");
    let files = [YAML, SERVER, ("Dockerfile", file.as_str()), ignore, secret];
    let built = lab.build(&files).await.unwrap();
    assert!(lab.lines().contains("a step ran"), "{}", lab.lines());
    let image = &built.functions[0].image;
    assert!(image.reference.starts_with("epsilon/lab-docker/web:"));
    assert_eq!(docker(&["image", "inspect", "-f", "{{.Id}}", &image.reference]), image.digest);
    assert_eq!(Served::run(&image.reference).get("/"), "from a Dockerfile");
    assert!(file_of(&image.reference, "/srv/server.js").is_some());
    assert_eq!(file_of(&image.reference, "/srv/secret.txt"), None);
    let again = lab.build(&files).await.unwrap();
    assert_eq!(lab.done(Step::Image), "unchanged");
    assert_eq!(built, again);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_dockerfile_is_reported_in_dockers_words() {
    let (lab, runtime) = base().await;
    let file = format!("FROM {runtime}\nRUN echo about to fail && exit 7\n");
    let err = lab.build(&[YAML, ("Dockerfile", &file)]).await.unwrap_err();
    assert_eq!(err.code, "IMAGE_FAILED");
    assert!(err.message.contains('7') && err.message.contains("about to fail"), "{}", err.message);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_exists_is_taken_under_our_name() {
    let (lab, runtime) = base().await;
    let yaml = format!(
        "project: lab-image\nruntime: container\nfunctions:\n  web: {{ image: '{runtime}' }}\n"
    );
    let built = lab.build(&[("epsilon.yaml", &yaml)]).await.unwrap();
    let image = &built.functions[0].image;
    assert_eq!(docker(&["image", "inspect", "-f", "{{.Id}}", &runtime]), image.digest);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_image_is_reported() {
    let lab = Lab::new().await;
    let yaml = "project: lab-none\nruntime: container\nfunctions:\n  web: { image: 'localhost:1/none:1' }\n";
    let err = lab.build(&[("epsilon.yaml", yaml)]).await.unwrap_err();
    assert_eq!(err.code, "IMAGE_FAILED");
    assert!(err.message.contains("localhost:1/none:1"), "{}", err.message);
    lab.end().await;
}

/// Steps run as root: without limits one of them could exhaust the machine.
#[tokio::test(flavor = "multi_thread")]
async fn steps_run_within_limits() {
    let lab = Lab::with(
        "{install_memory: 128MiB, install_pids: 64, install_cpu: 0.5, install_size: 64MiB}",
    )
    .await;
    let runtime = lab.app().ensure_runtime(lab.log()).await.unwrap();
    for (step, says) in [
        // A step's view of its limits, on either version of cgroups.
        (
            "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; exit 3",
            "134217728",
        ),
        ("node -e 'const all = []; for (;;) all.push(Buffer.alloc(1 << 20, 1))'", "137"),
        (
            "bomb() { bomb | bomb & }; bomb; sleep 1; echo alive; sleep 1000 & sleep 1000 & sleep 1000 & false",
            "fork",
        ),
        (
            "for n in $(seq 100); do head -c 10M /dev/zero > /$n || exit 9; done; sleep 60",
            "more than 64MiB",
        ),
        ("head -c 100M /dev/zero > /large", "failed to build"),
    ] {
        let file = format!("FROM {runtime}\nUSER root\nRUN {step}\n");
        let err = lab.build(&[YAML, ("Dockerfile", &file)]).await.unwrap_err();
        assert_eq!(err.code, "IMAGE_FAILED");
        assert!(err.message.contains(says), "{step}: {}", err.message);
    }
    let id = lab.id();
    lab.end().await;
    let left = std::fs::read_dir("/sys/fs/cgroup").unwrap().filter_map(Result::ok);
    let left = left.filter_map(|entry| std::fs::read_dir(entry.path()).ok()).flatten();
    let mut left = left.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    assert_eq!(left.find(|name| name.starts_with(&format!("epsilon-build-{id}"))), None);
}
