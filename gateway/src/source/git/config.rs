//! Settings of `git push` as a deployment, section `gateway.git:`.

use crate::config::invalid::ConfigError;
use epsilon_api::serde_text;
use epsilon_api::units::Bytes;
use serde::Deserialize;
use std::{path::PathBuf, time::Duration};

/// The section `gateway.git:`. Every key may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Whether the control listener accepts `git push` at `/git/PROJECT`. Default `true`: it
    /// requires the admin key, and a machine without git answers with what to install.
    pub enabled: bool,
    /// The git program that serves the repositories, 2.30 or newer. Default `git`: the first one on
    /// the `PATH`.
    pub program: PathBuf,
    /// The branch whose pushes are deployed. Default `main`. Other branches are stored, and the
    /// pusher sees a note.
    pub branch: String,
    /// Tags whose pushes are deployed, too: a pattern in which `*` matches any text, such as `v*`.
    /// Default: none; tags are stored.
    pub tags: Option<String>,
    /// Largest push, compressed as git sends it; never more than `gateway.max_source`. Default
    /// `256MiB`: sources with their history.
    #[serde(deserialize_with = "serde_text::text")]
    pub max_push: Bytes,
    /// Concurrent pushes, clones and fetches; more are refused with 503. Default 16: each runs one
    /// or two git processes. A push counts until its deployment has ended.
    pub max_requests: usize,
    /// Longest time for git to receive a push, or to send a fetch; the deployment in between has
    /// `gateway.deploy_timeout`. Default `10m`: a large push over a slow line.
    #[serde(deserialize_with = "serde_text::duration")]
    pub timeout: Duration,
    /// Longest time for git to look something up in a repository. Default `1m`; it takes
    /// milliseconds on an idle machine.
    #[serde(deserialize_with = "serde_text::duration")]
    pub lookup_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: true,
            program: "git".into(),
            branch: "main".into(),
            tags: None,
            max_push: Bytes::mib(256),
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
    pub(crate) program: PathBuf,
    pub(crate) branch: String,
    pub(crate) tags: Option<String>,
    pub(crate) max_push: Bytes,
    pub(crate) max_requests: usize,
    pub(crate) timeout: Duration,
    pub(crate) lookup_timeout: Duration,
}

impl Config {
    /// Checks the settings.
    pub(crate) fn new(settings: Settings, max_source: Bytes) -> Result<Self, ConfigError> {
        let rule = |holds: bool, key, rule: &'static str| {
            if holds { Ok(()) } else { Err(ConfigError { key, rule: rule.into() }) }
        };
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
        rule(settings.max_requests > 0, "git.max_requests", "must be at least 1")?;
        rule(!settings.timeout.is_zero(), "git.timeout", "must be longer than `0s`")?;
        rule(!settings.lookup_timeout.is_zero(), "git.lookup_timeout", "must be longer than `0s`")?;
        Ok(Self {
            enabled: settings.enabled,
            program: settings.program,
            branch: settings.branch,
            tags: settings.tags,
            max_push: settings.max_push.min(max_source),
            max_requests: settings.max_requests,
            timeout: settings.timeout,
            lookup_timeout: settings.lookup_timeout,
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
        let never = Settings { timeout: Duration::ZERO, ..Settings::default() };
        assert_eq!(refused(never), "git.timeout");
    }

    #[test]
    fn a_push_is_limited_by_max_source() {
        let config = Config::new(Settings::default(), Bytes::mib(5)).unwrap();
        assert_eq!(config.max_push, Bytes::mib(5));
    }
}
