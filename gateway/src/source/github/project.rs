//! Settings of one project's webhook ([`Settings`], `gateway.github.<project>` in the settings
//! file), and their checked form ([`Hook`]). Its secrets are in files that are read for each
//! delivery: a changed secret needs no restart, and none stays in memory.

use super::allowed_hosts::{CheckedUrl, Hosts};
use epsilon_api::{ids::ProjectName, redacted::Secret};
use epsilon_bootstrap::settings::invalid::ConfigError;
use serde::Deserialize;
use std::{
    io,
    path::{Path, PathBuf},
};
use tokio::io::AsyncReadExt;

/// The mapping `gateway.github.<project>`. `repository` and `secret_file` are required.
#[allow(missing_docs, reason = "`config.default.yaml` explains each key")]
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub repository: String,
    pub branch: String,
    pub tags: Option<String>,
    pub secret_file: PathBuf,
    pub token_file: Option<PathBuf>,
    pub url: String,
    pub api_url: Option<String>,
}

const GITHUB_URL: &str = "https://github.com";
const GITHUB_API_URL: &str = "https://api.github.com";
/// A shorter secret could be guessed from one signature.
const MIN_SECRET: usize = 16;
/// Longest secret or token: one line.
const MAX_SECRET: u64 = 4096;

/// One project's webhook, with checked settings.
#[derive(Clone, Debug)]
pub(crate) struct Hook {
    pub(crate) project: ProjectName,
    /// `OWNER/NAME`.
    pub(crate) repository: String,
    pub(crate) branch: String,
    pub(crate) tags: Option<String>,
    /// URL from which the repository is fetched.
    pub(crate) source: CheckedUrl,
    /// URL of the commit statuses.
    pub(crate) api: CheckedUrl,
    secret_file: PathBuf,
    token_file: Option<PathBuf>,
}

/// Why a secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error("`{path}` cannot be read")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "`{path}` contains fewer than {MIN_SECRET} characters: make a secret with `openssl rand -hex 32`"
    )]
    Short { path: PathBuf },
    #[error("`{path}` does not contain exactly one line of visible ASCII")]
    NotOneLine { path: PathBuf },
}

impl Hook {
    pub(crate) fn new(
        project: ProjectName,
        settings: Settings,
        hosts: &Hosts,
    ) -> Result<Self, ConfigError> {
        let wrong = |what: String| ConfigError {
            key: "github",
            rule: format!("`{project}`: {what}").into(),
        };
        let Settings { repository, branch, tags, secret_file, token_file, url, api_url } = settings;
        if !is_repository(&repository) {
            return Err(wrong(format!("`repository` must be `OWNER/NAME`, not `{repository}`")));
        }
        if !crate::source::git::ref_name::is_ref_name(&branch) {
            return Err(wrong(format!("`branch`: `{branch}` is not a branch name")));
        }
        let is_tag =
            |tags: &str| crate::source::git::ref_name::is_ref_name(&tags.replace('*', "x"));
        if let Some(tags) = tags.as_deref().filter(|tags| !is_tag(tags)) {
            return Err(wrong(format!(
                "`tags`: `{tags}` is not a pattern of tag names such as `v*`"
            )));
        }
        if secret_file.as_os_str().is_empty() {
            return Err(wrong(
                "`secret_file` is required: without a secret anyone could deploy".into(),
            ));
        }
        let url = url.trim_end_matches('/');
        let api_url = api_url.unwrap_or_else(|| match url {
            GITHUB_URL => GITHUB_API_URL.to_owned(),
            other => format!("{other}/api/v3"),
        });
        let source = hosts.check(&format!("{url}/{repository}.git"));
        let source = source.map_err(|err| wrong(format!("`url`: {err}")))?;
        let api =
            hosts.check(&format!("{}/repos/{repository}/statuses/", api_url.trim_end_matches('/')));
        let api = api.map_err(|err| wrong(format!("`api_url`: {err}")))?;
        Ok(Self { project, repository, branch, tags, source, api, secret_file, token_file })
    }

    /// The secret with which deliveries are signed.
    pub(crate) async fn secret(&self) -> Result<Secret<String>, SecretError> {
        let secret = read(&self.secret_file).await?;
        if secret.reveal().len() < MIN_SECRET {
            return Err(SecretError::Short { path: self.secret_file.clone() });
        }
        Ok(secret)
    }

    /// The token for the repository and its commit statuses, if there is one.
    pub(crate) async fn token(&self) -> Result<Option<Secret<String>>, SecretError> {
        match &self.token_file {
            Some(path) => read(path).await.map(Some),
            None => Ok(None),
        }
    }
}

/// Reads the only line of a file. Its content never becomes part of an error.
async fn read(path: &Path) -> Result<Secret<String>, SecretError> {
    let unreadable = |source| SecretError::Unreadable { path: path.to_owned(), source };
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let mut text = String::new();
    file.take(MAX_SECRET).read_to_string(&mut text).await.map_err(unreadable)?;
    let line = text.trim();
    if line.is_empty() || !line.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
        return Err(SecretError::NotOneLine { path: path.to_owned() });
    }
    Ok(Secret::new(line.to_owned()))
}

fn is_repository(text: &str) -> bool {
    let is_part = |part: &str| {
        (1..=100).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            && !part.starts_with('.')
            && !part.ends_with(".git")
    };
    text.split_once('/').is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::defaults::DEFAULTS;

    fn hook(text: &str) -> Result<Hook, String> {
        let settings = DEFAULTS.read("github.<project>", text).map_err(|err| err.to_string())?;
        let hosts = Hosts::new(
            vec!["github.com".into(), "api.github.com".into(), "github.example.org".into()],
            vec!["127.0.0.1".into()],
        );
        let project = ProjectName::parse("shop").unwrap();
        Hook::new(project, settings, &hosts).map_err(|err| err.to_string())
    }

    #[test]
    fn github_com_is_the_default_url() {
        let at = |hook: Hook| (hook.source.url().to_owned(), hook.api.url().to_owned());
        assert_eq!(
            at(hook(r#"{"repository":"octo/shop","secret_file":"/s"}"#).unwrap()),
            (
                "https://github.com/octo/shop.git".into(),
                "https://api.github.com/repos/octo/shop/statuses/".into()
            )
        );
        let text = r#"{"repository":"o/s","secret_file":"/s","url":"https://github.example.org/"}"#;
        assert_eq!(
            at(hook(text).unwrap()),
            (
                "https://github.example.org/o/s.git".into(),
                "https://github.example.org/api/v3/repos/o/s/statuses/".into()
            )
        );
    }

    macro_rules! refused {
        ($($name:ident: $text:expr => $want:expr;)*) => {$(
            #[test]
            fn $name() {
                let message = hook($text).unwrap_err();
                assert!(message.contains($want), "{message}");
            }
        )*};
    }

    refused! {
        without_a_repository: r#"{"secret_file":"/s"}"# => "`shop`: `repository` must be `OWNER/NAME`";
        a_path_in_its_place: r#"{"repository":"a/b/../c","secret_file":"/s"}"# => "`repository` must";
        a_folder_above: r#"{"repository":"../b","secret_file":"/s"}"# => "`repository` must";
        without_a_secret: r#"{"repository":"a/b"}"# => "`secret_file` is required";
        an_option_as_branch: r#"{"repository":"a/b","secret_file":"/s","branch":"--upload-pack=x"}"# => "`branch`";
        a_host_that_is_not_allowed: r#"{"repository":"a/b","secret_file":"/s","url":"https://evil.example.org"}"#
            => "`gateway.hooks.hosts`";
        in_clear_to_a_public_host: r#"{"repository":"a/b","secret_file":"/s","url":"http://github.com"}"# => "https";
        an_unknown_key: r#"{"repository":"a/b","secret":"x"}"# => "unknown field `secret`";
    }

    #[tokio::test]
    async fn secrets_are_one_line_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        let with = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let path = file.display();
            let hook = hook(&format!(r#"{{"repository":"a/b","secret_file":"{path}"}}"#)).unwrap();
            async move { hook.secret().await }
        };
        assert_eq!(with("0123456789abcdef\n").await.unwrap().reveal(), "0123456789abcdef");
        for (text, want) in [
            ("short\n", "fewer than 16"),
            ("0123456789abcdef\nsecond line", "exactly one line"),
            ("", "exactly one line"),
        ] {
            let message = with(text).await.unwrap_err().to_string();
            assert!(message.contains(want) && !message.contains("second"), "{message}");
        }
        std::fs::remove_file(&file).unwrap();
        let path = file.display();
        let gone = hook(&format!(r#"{{"repository":"a/b","secret_file":"{path}"}}"#)).unwrap();
        assert!(matches!(gone.secret().await, Err(SecretError::Unreadable { .. })));
        assert!(gone.token().await.unwrap().is_none());
    }
}
