//! Which credentials are sent to which registry, and when other ones are tried.

use super::*;
use crate::RegistrySettings;
use std::{cell::RefCell, io::Write};
use tempfile::NamedTempFile;

/// A registry that records the passwords it got, and accepts one.
#[derive(Default)]
struct FakeRegistry {
    takes: RefCell<String>,
    seen: RefCell<Vec<String>>,
}

impl FakeRegistry {
    async fn ask(&self, login: Option<Login>) -> Result<(), &'static str> {
        let password = login.map_or_else(String::new, |login| login.password.reveal().clone());
        self.seen.borrow_mut().push(password.clone());
        if password == *self.takes.borrow() { Ok(()) } else { Err("unauthorized") }
    }

    fn takes(&self, password: &str) {
        *self.takes.borrow_mut() = password.to_owned();
    }

    fn seen(&self) -> Vec<String> {
        self.seen.take()
    }
}

fn host() -> Host {
    Host::of_registry("registry.example")
}

async fn run(access: &Access, registry: &FakeRegistry) -> Result<(), Failed<&'static str>> {
    access.run(&host(), |err| *err == "unauthorized", |login| registry.ask(login)).await
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn with_file(file: &NamedTempFile) -> Access {
    let settings = RegistrySettings {
        registry: Some("registry.example/team".into()),
        user: Some("ann".into()),
        password_file: Some(file.path().to_owned()),
        ..RegistrySettings::default()
    };
    settings.check().unwrap().1
}

#[tokio::test]
async fn without_settings_requests_are_anonymous() {
    let access = Access::default();
    assert_eq!(access.login(&host()).await.unwrap(), None);
    let registry = FakeRegistry::default();
    registry.takes("pw");
    assert!(matches!(run(&access, &registry).await, Err(Failed::Work("unauthorized"))));
    assert_eq!(registry.seen(), [""], "there are no other credentials, so there is one attempt");
}

#[tokio::test]
async fn a_password_is_shown_to_its_own_registry_only() {
    let file = file("pw\n");
    let access = with_file(&file);
    let login = access.login(&host()).await.unwrap().unwrap();
    assert_eq!((login.user.as_str(), login.password.reveal().as_str()), ("ann", "pw"));
    for other in ["docker.io", "registry.example:5000", "x.registry.example"] {
        assert_eq!(access.login(&Host::of_registry(other)).await.unwrap(), None, "{other}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_tried_once() {
    let file = file("wrong");
    let access = with_file(&file);
    let registry = FakeRegistry::default();
    registry.takes("right");
    assert!(matches!(run(&access, &registry).await, Err(Failed::Work("unauthorized"))));
    assert_eq!(registry.seen(), ["wrong"]);
}

#[tokio::test]
async fn a_password_that_was_just_replaced_works_at_once() {
    let file = file("old");
    let access = with_file(&file);
    let registry = FakeRegistry::default();
    registry.takes("new");
    let host = host();
    let result = access.run(
        &host,
        |err| *err == "unauthorized",
        |login| {
            // The operator replaces the file during the first attempt.
            std::fs::write(file.path(), "new").unwrap();
            registry.ask(login)
        },
    );
    assert!(result.await.is_ok());
    assert_eq!(registry.seen(), ["old", "new"]);
}

#[tokio::test]
async fn other_failures_are_not_tried_again() {
    let file = file("pw");
    let attempts = RefCell::new(0);
    let done: Result<(), _> = with_file(&file)
        .run(
            &host(),
            |err| *err == "unauthorized",
            |_| {
                *attempts.borrow_mut() += 1;
                async { Err("connection refused") }
            },
        )
        .await;
    assert!(matches!(done, Err(Failed::Work("connection refused"))));
    assert_eq!(attempts.take(), 1);
}

#[tokio::test]
async fn docker_configuration_is_used_and_its_errors_reported() {
    let good = file(r#"{"auths":{"registry.example":{"username":"bob","password":"pw"}}}"#);
    let access = |file: &NamedTempFile| {
        let settings = RegistrySettings {
            docker_config: Some(file.path().to_owned()),
            ..RegistrySettings::default()
        };
        settings.check().unwrap().1
    };
    assert_eq!(access(&good).login(&host()).await.unwrap().unwrap().user, "bob");
    let bad = file("{");
    let err = access(&bad).login(&host()).await.unwrap_err();
    assert!(matches!(err, AccessError::DockerConfig { .. }), "{err}");
    let gone = access(&bad);
    bad.close().unwrap();
    let err = gone.login(&host()).await.unwrap_err();
    assert!(matches!(err, AccessError::File { .. }), "{err}");
    assert!(matches!(run(&gone, &FakeRegistry::default()).await, Err(Failed::Login(_))));
}
