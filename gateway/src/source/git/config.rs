//! Settings of `git push` as a deployment, section `gateway.git:`.

use crate::config::defaults::DEFAULTS;
use epsilon_api::serde_text;
use epsilon_api::units::Bytes;
use epsilon_bootstrap::settings::invalid::{ConfigError, rule};
use serde::Deserialize;
use std::{path::PathBuf, time::Duration};

/// The section `gateway.git:`.
#[allow(missing_docs, reason = "`config.default.yaml` explains each key")]
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub enabled: bool,
    pub branch: String,
    pub tags: Option<String>,
    #[serde(deserialize_with = "serde_text::text")]
    pub max_push: Bytes,
    /// No settings: a test of the whole gateway may need other numbers.
    #[doc(hidden)]
    #[serde(skip)]
    pub limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        DEFAULTS.of("git")
    }
}

/// What is the same for every operator.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct Limits {
    /// The git program, 2.30 or newer: the first one on the `PATH`.
    pub program: PathBuf,
    /// Concurrent pushes, clones and fetches; more get 503. Each runs one or two git processes. A
    /// push counts until its deployment has ended.
    pub max_requests: usize,
    /// Longest time for git to receive a push, or to send a fetch: a large push over a slow line.
    pub timeout: Duration,
    /// Longest time for git to look something up in a repository; it takes milliseconds on an idle
    /// machine.
    pub lookup_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            program: "git".into(),
            max_requests: 16,
            timeout: Duration::from_secs(10 * 60),
            lookup_timeout: Duration::from_secs(60),
        }
    }
}

/// Checked settings.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) enabled: bool,
    pub(crate) branch: String,
    pub(crate) tags: Option<String>,
    pub(crate) max_push: Bytes,
    pub(crate) limits: Limits,
}

impl Config {
    /// Checks the settings.
    pub(crate) fn new(settings: Settings, max_source: Bytes) -> Result<Self, ConfigError> {
        rule(
            is_branch(&settings.branch),
            "git.branch",
            "must be a branch's name such as `main`, without `refs/heads/`",
        )?;
        rule(
            settings.tags.as_deref().is_none_or(|tags| is_branch(&tags.replace('*', "x"))),
            "git.tags",
            "must be a tag's name such as `v*`, without `refs/tags/`",
        )?;
        rule(settings.max_push >= Bytes(64 << 10), "git.max_push", "must be at least `64KiB`")?;
        Ok(Self {
            enabled: settings.enabled,
            branch: settings.branch,
            tags: settings.tags,
            max_push: settings.max_push.min(max_source),
            limits: settings.limits,
        })
    }
}

/// git's rule for branch names, slightly stricter.
fn is_branch(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && !part.ends_with('.')
            && !part.ends_with(".lock")
            && !part.contains("..")
            && part.bytes().all(|b| b.is_ascii_graphic() && !b"~^:?*[\\@{}".contains(&b))
    };
    name.len() <= 200 && !name.starts_with("refs/") && name.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(settings: Settings) -> &'static str {
        Config::new(settings, Bytes::mib(512)).unwrap_err().key
    }

    #[test]
    fn what_cannot_work_is_named() {
        let branch = |branch: &str| Settings { branch: branch.into(), ..Settings::default() };
        for wrong in ["", "refs/heads/main", "-x", "a..b", "a b", "main.lock", "a//b", "v*"] {
            assert_eq!(refused(branch(wrong)), "git.branch", "{wrong}");
        }
        assert!(Config::new(branch("release/2026"), Bytes::mib(512)).is_ok());
        let tags = |tags: &str| Settings { tags: Some(tags.into()), ..Settings::default() };
        assert_eq!(refused(tags("refs/tags/v*")), "git.tags");
        assert!(Config::new(tags("v*"), Bytes::mib(512)).is_ok());
        let small = Settings { max_push: Bytes(1), ..Settings::default() };
        assert_eq!(refused(small), "git.max_push");
    }

    #[test]
    fn a_push_is_limited_by_max_source() {
        let config = Config::new(Settings::default(), Bytes::mib(5)).unwrap();
        assert_eq!(config.max_push, Bytes::mib(5));
    }
}
