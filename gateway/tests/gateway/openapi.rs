//! The OpenAPI document of the control API: complete by itself, and true as far as schemathesis
//! finds out, which sends what the document allows and forbids and compares each answer with it.
//! Every other test that asks the control API checks its status against the document
//! (`World::ask`).

use crate::world::World;
use epsilon_api::build::BuildError;
use http::{Method, StatusCode};
use std::{collections::HashSet, env, path::PathBuf, process::Stdio, time::Duration};
use tokio::{process::Command, time::timeout};

/// Longest time of both runs of schemathesis: they take a third of that on a busy machine.
const RUNS: Duration = Duration::from_secs(60);
/// More builds than the runs of schemathesis ask for.
const BUILDS: usize = 900;

/// Answers whose body is not JSON, by path.
const STREAMS: [(&str, &str); 3] = [
    ("/v1/functions/{name}/logs", "application/x-ndjson"),
    ("/v1/deployments", "application/x-ndjson"),
    ("/metrics", "text/plain"),
];

#[tokio::test]
async fn every_answer_in_the_document_has_a_schema() {
    let world = World::with(&["hello"]).await;
    let document = world.ask(Method::GET, "/v1/openapi.json", "").await.json();
    assert_eq!(document["info"]["title"], "Epsilon control API");
    let mut ids = HashSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let at = format!("{method} {path}");
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{at}: {id} is used twice");
            assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{at}");
            let named: Vec<_> = path.split('/').filter(|part| part.starts_with('{')).collect();
            for name in named {
                let name = name.trim_matches(['{', '}']);
                let parameters = operation["parameters"].as_array().expect(&at);
                assert!(parameters.iter().any(|one| one["name"] == name), "{at}: {name}");
            }
            let answers = operation["responses"].as_object().unwrap();
            assert!(answers.keys().any(|status| status.starts_with('2')), "{at}");
            for (status, answer) in answers {
                let contents = answer["content"].as_object();
                if status == "204" {
                    assert!(contents.is_none(), "{at}: {status}");
                    continue;
                }
                let contents = contents.unwrap_or_else(|| panic!("{at}: {status} has no body"));
                for (kind, content) in contents {
                    assert!(content["schema"].is_object(), "{at}: {status} {kind}");
                    let expected = kind == "application/json" || STREAMS.contains(&(path, kind));
                    assert!(expected, "{at}: {status} {kind}");
                }
            }
        }
    }
    assert_eq!(ids.len(), 27, "routes; a new one is counted here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemathesis_finds_no_answer_that_the_document_does_not_describe() {
    let world = World::with(&["hello", "bye"]).await;
    world.deploy("shop", &[("hello", "2"), ("bye", "1")]).await;
    for _ in 0..BUILDS {
        world.builder.next(Err(BuildError {
            code: "NO_FUNCTIONS".into(),
            status: StatusCode::UNPROCESSABLE_ENTITY,
            message: "there is no function in it".into(),
            hint: None,
        }));
    }
    // Names that exist; then any, also to delete what they name.
    let runs = async {
        schemathesis(&world, "known.toml").await;
        schemathesis(&world, "any.toml").await;
    };
    timeout(RUNS, runs).await.expect("schemathesis ends in time");
    let health = world.ask(Method::GET, "/healthz", "").await.json();
    assert_eq!(health["data"]["status"], "ok");
    assert!(world.builder.begun() < BUILDS, "the builder has run out of answers");
}

async fn schemathesis(world: &World, config: &str) {
    let program = program();
    let config =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/schemathesis").join(config);
    let run = Command::new(&program)
        .arg("--config-file")
        .arg(&config)
        .arg("run")
        .arg(format!("http://{}/v1/openapi.json", world.control))
        .args(["--no-color", "--header"])
        .arg(format!("Authorization: Bearer {}", world.key))
        .current_dir(world.dir.path()) // it writes notes
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let run = run.unwrap_or_else(|err| {
        panic!("{} does not start ({err}); run infra/ensure-tools.sh test", program.display())
    });
    let text = String::from_utf8_lossy(&run.stdout);
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{}:\n{text}\n{errors}", config.display());
}

/// Where `infra/ensure-tools.sh` installs it.
fn program() -> PathBuf {
    let folder = |name: &str| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let tools = folder("EPSILON_TOOLS_DIR").unwrap_or_else(|| {
        let cache = folder("XDG_CACHE_HOME")
            .unwrap_or_else(|| folder("HOME").unwrap_or_else(|| "/root".into()).join(".cache"));
        cache.join("epsilon-tools")
    });
    tools.join("schemathesis/bin/schemathesis")
}
