//! Image pulls of this VM: a few at once, each within one time limit, with the registry's
//! credentials, and once more with fresh ones when it refuses those. Knows no engine;
//! `engine/docker.rs` does the pulling.

use crate::engine::{EngineError, ImageUnavailable};
use epsilon_api::function::ImageRef;
use epsilon_registry::{Access, Failed, Host, Login, RegistryFailure};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

/// Limits pulls and adds credentials. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Pulls {
    access: Access,
    turns: Arc<Semaphore>,
    limit: Duration,
}

impl Pulls {
    pub(crate) fn new(access: Access, at_once: usize, limit: Duration) -> Self {
        Self { access, turns: Arc::new(Semaphore::new(at_once)), limit }
    }

    /// Runs `pull` when it is its turn. The limit is for all of it: the turn, the login and both
    /// attempts.
    pub(crate) async fn run<F>(
        &self,
        image: &ImageRef,
        pull: impl Fn(Host, Option<Login>) -> F,
    ) -> Result<(), EngineError>
    where
        F: Future<Output = Result<(), EngineError>>,
    {
        let Some(host) = Host::named_in(&image.reference) else {
            return Err(EngineError::NotHere(image.reference.clone()));
        };
        let deadline = Instant::now() + self.limit;
        let work = async {
            // A closed semaphore would be a harmless bug: the pull continues.
            let _turn = self.turns.acquire().await;
            self.access.run(&host, is_refused, |login| pull(host.clone(), login)).await
        };
        let failed = match timeout_at(deadline, work).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(failed)) => failed,
            Err(_) => return Err(self.too_slow(host)),
        };
        Err(match failed {
            Failed::Login(err) => EngineError::Registry(Box::new(ImageUnavailable {
                what: "cannot be used: this machine could not get credentials for it".into(),
                hint: err.hint(),
                host,
                source: Some(Box::new(err)),
            })),
            Failed::Work(EngineError::Down(_)) if Instant::now() >= deadline => self.too_slow(host),
            Failed::Work(err) => match text(&err) {
                Some(said) => {
                    let failure = RegistryFailure::of(said);
                    EngineError::Registry(Box::new(ImageUnavailable {
                        what: failure.what().into(),
                        hint: next_step(failure, &host),
                        host,
                        source: Some(Box::new(err)),
                    }))
                }
                None => err,
            },
        })
    }

    fn too_slow(&self, host: Host) -> EngineError {
        let limit = humantime::format_duration(self.limit);
        EngineError::Registry(Box::new(ImageUnavailable {
            hint: format!(
                "check whether `{host}` is slow, or raise `vm_agent.pull_timeout` and `gateway.fetch_timeout`"
            ),
            what: format!("did not provide the image within {limit}"),
            host,
            source: None,
        }))
    }
}

/// The engine's error text; `None` when it did not answer itself.
fn text(err: &EngineError) -> Option<&str> {
    match err {
        EngineError::NotFound(text) | EngineError::Refused(text) => Some(text),
        EngineError::Shared(other) => text(other),
        EngineError::Down(_) | EngineError::Registry(_) | EngineError::NotHere(_) => None,
    }
}

/// The hint for the operator of this VM.
fn next_step(failure: RegistryFailure, host: &Host) -> String {
    match failure {
        RegistryFailure::Refused => "check `vm_agent.registry_user` and its password file, \
                             `vm_agent.registry_docker_config`, or the machine's role for ECR"
            .into(),
        RegistryFailure::Absent => {
            "deploy the function again; check whether the registry removes images too early".into()
        }
        RegistryFailure::Unreachable => {
            format!("check whether `{host}` runs, and whether this machine reaches it")
        }
        RegistryFailure::UnknownAuthority => {
            format!("put the registry's authority into `/etc/docker/certs.d/{host}/ca.crt`")
        }
        RegistryFailure::PlainHttp => format!(
            "name `{host}` in `insecure-registries` of `/etc/docker/daemon.json`, or give it a \
             certificate"
        ),
        RegistryFailure::DiskFull => {
            "free space under the engine's directory (`docker image prune`)".into()
        }
        RegistryFailure::Other => "the engine's log says more".into(),
    }
}

fn is_refused(err: &EngineError) -> bool {
    text(err).is_some_and(|text| RegistryFailure::of(text) == RegistryFailure::Refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use epsilon_api::chain::Chain;
    use std::{
        future::{pending, ready},
        sync::atomic::{AtomicUsize, Ordering},
    };

    fn image() -> ImageRef {
        ImageRef { reference: "registry.example/pay@sha256:00".into(), digest: "sha256:01".into() }
    }

    fn pulls(at_once: usize) -> Pulls {
        Pulls::new(Access::default(), at_once, Duration::from_secs(300))
    }

    #[tokio::test]
    async fn errors_carry_the_next_step() {
        for (said, what, next) in [
            ("no basic auth credentials", "refused", "vm_agent.registry_user"),
            ("manifest unknown", "does not have", "deploy"),
            ("dial tcp: connection refused", "cannot be reached", "`registry.example` runs"),
            ("x509: unknown", "certificate", "/etc/docker/certs.d/registry.example/ca.crt"),
        ] {
            let pull = pulls(1);
            let err =
                pull.run(&image(), |_, _| ready(Err(EngineError::Refused(said.into())))).await;
            let text = Chain(&err.unwrap_err()).to_string();
            for part in ["`registry.example`", what, next, said] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
    }

    /// Images that a builder loaded into the engine have such names. Docker Hub may have anything
    /// under them.
    #[tokio::test]
    async fn a_name_without_a_registry_is_never_pulled() {
        for reference in ["epsilon/shop/pay:0123456789ab", "pay:1", "team/pay@sha256:00"] {
            let image = ImageRef { reference: reference.into(), digest: "sha256:01".into() };
            let attempts = AtomicUsize::new(0);
            let pull = |_, _| {
                attempts.fetch_add(1, Ordering::SeqCst);
                ready(Ok(()))
            };
            let err = pulls(1).run(&image, pull).await.unwrap_err();
            assert_eq!(attempts.load(Ordering::SeqCst), 0, "{reference}");
            let text = err.to_string();
            for part in [reference, "not on this VM", "no registry", "deploy", "`epsilon restore`"]
            {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
    }

    #[tokio::test]
    async fn engine_outage_is_not_blamed_on_registry() {
        let down = |_, _| ready(Err(EngineError::Down("no socket".into())));
        let err = pulls(1).run(&image(), down).await.unwrap_err();
        assert!(matches!(err, EngineError::Down(_)), "{err}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_a_turn_counts() {
        let pulls = pulls(2);
        let began = AtomicUsize::new(0);
        let image = image();
        let hang = || {
            pulls.run(&image, |_, _| {
                began.fetch_add(1, Ordering::SeqCst);
                pending()
            })
        };
        let at_last = async {
            tokio::time::sleep(Duration::from_secs(299)).await;
            began.load(Ordering::SeqCst)
        };
        let (one, two, three, running) = tokio::join!(hang(), hang(), hang(), at_last);
        assert_eq!(running, 2, "two at once");
        for err in [one, two, three] {
            let text = err.unwrap_err().to_string();
            assert!(text.contains("within 5m") && text.contains("pull_timeout"), "{text}");
        }
        let done = pulls.run(&image, |_, _| ready(Ok(()))).await;
        assert!(done.is_ok(), "turns come back: {done:?}");
    }
}
