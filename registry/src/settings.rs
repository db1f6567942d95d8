//! The operator's settings of registries, for agents (section `vm_agent`) and builders (section
//! `builder`) alike. The keys are declared in each part's own `config.rs`; their combination is
//! checked here.

use crate::sources::OwnCredentials;
use crate::{Access, EcrHost, Host, access::Sources};
use epsilon_api::redacted::Secret;
use std::path::PathBuf;

/// The settings as written in the file.
#[derive(Debug, Default)]
pub struct RegistrySettings {
    /// `registry`: `host[:port][/prefix]`.
    pub registry: Option<String>,
    /// `registry_user`.
    pub user: Option<String>,
    /// `registry_password`.
    pub password: Option<Secret<String>>,
    /// `registry_password_file`.
    pub password_file: Option<PathBuf>,
    /// `registry_docker_config`.
    pub docker_config: Option<PathBuf>,
}

/// An invalid setting, without its section.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}`: {rule}")]
pub struct Invalid {
    /// The setting.
    pub key: &'static str,
    /// The value; empty for secrets.
    pub value: String,
    /// What it has to be.
    pub rule: &'static str,
}

/// Whether this can be a registry's name, `host[:port][/prefix]`.
fn is_registry(name: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-:[]".contains(&b))
    };
    let host = name.split('/').next().unwrap_or_default();
    name.len() <= 255
        && name.split('/').all(is_part)
        && (host.contains('.') || host.contains(':') || host == "localhost")
}

/// Whether a program with or without AWS's SDK can log in to this registry: to ECR only with it.
fn is_within_build(name: &str, aws: bool) -> bool {
    aws || EcrHost::parse(Host::of_registry(name).as_str()).is_none()
}

impl RegistrySettings {
    /// Checks the settings. Returns the registry's name without a trailing `/`, and the
    /// credentials.
    ///
    /// # Errors
    /// The first invalid setting.
    pub fn check(self) -> Result<(Option<String>, Access), Invalid> {
        let invalid = |key, value: &str, rule| Err(Invalid { key, value: value.to_owned(), rule });
        let name = self.registry.map(|name| name.trim_end_matches('/').to_owned());
        if let Some(name) = name.as_deref().filter(|name| !is_registry(name)) {
            let rule = "write it as `host[:port][/prefix]`, in lower case, without `https://`";
            return invalid("registry", name, rule);
        }
        let aws = cfg!(feature = "aws");
        if let Some(name) = name.as_deref().filter(|name| !is_within_build(name, aws)) {
            let rule = "this program was built without AWS (the cargo feature `aws`) and cannot log in to ECR; release packages and `make build` have it";
            return invalid("registry", name, rule);
        }
        let together = "user and password go together";
        let own = match (self.user, self.password, self.password_file) {
            (None, None, None) => None,
            (_, Some(_), Some(path)) => {
                let rule = "the password is either in the settings or in a file";
                return invalid("registry_password_file", &path.to_string_lossy(), rule);
            }
            (Some(user), Some(password), None) => Some(OwnCredentials::Password { user, password }),
            (Some(user), None, Some(path)) => Some(OwnCredentials::File { user, path }),
            (Some(user), None, None) => return invalid("registry_user", &user, together),
            (None, Some(_), None) => return invalid("registry_password", "", together),
            (None, None, Some(path)) => {
                return invalid("registry_password_file", &path.to_string_lossy(), together);
            }
        };
        let own = match (&name, own) {
            (_, None) => None,
            (Some(name), Some(own)) => Some((Host::of_registry(name), own)),
            (None, Some(own)) => {
                let rule = "name the registry that it is for in `registry`: the password is sent to no other one";
                return invalid("registry_user", own.user(), rule);
            }
        };
        for (key, path) in [
            ("registry_password_file", own.as_ref().and_then(|(_, own)| own.path())),
            ("registry_docker_config", self.docker_config.as_ref()),
        ] {
            if let Some(path) = path.filter(|path| !path.is_file()) {
                return invalid(key, &path.to_string_lossy(), "there is no such file");
            }
        }
        let sources = Sources { own, docker_config: self.docker_config, ..Sources::default() };
        Ok((name, Access::new(sources)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn key(settings: RegistrySettings) -> Result<(), &'static str> {
        settings.check().map(drop).map_err(|invalid| invalid.key)
    }

    #[test]
    fn settings_are_optional() {
        let (name, _) = RegistrySettings::default().check().unwrap();
        assert_eq!(name, None);
    }

    #[test]
    fn names_are_hosts_with_an_optional_prefix() {
        for (name, want) in [
            ("registry.example", Some("registry.example")),
            ("registry.example/", Some("registry.example")),
            ("registry.example:5000/team/x", Some("registry.example:5000/team/x")),
            ("localhost/x", Some("localhost/x")),
            (
                "123456789012.dkr.ecr.eu-west-1.amazonaws.com/shop",
                Some("123456789012.dkr.ecr.eu-west-1.amazonaws.com/shop"),
            ),
            ("https://registry.example", None),
            ("registry", None),
            ("Registry.example", None),
            ("registry.example//x", None),
            ("registry.example/x@sha256", None),
            ("registry.example/../x", None),
            ("", None),
        ] {
            let read =
                RegistrySettings { registry: some(name), ..RegistrySettings::default() }.check();
            let read = read.map(|(name, _)| name.unwrap()).ok();
            assert_eq!(read.as_deref(), want, "{name}");
        }
    }

    #[test]
    fn ecr_is_refused_without_aws() {
        let ecr = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/shop";
        for (name, aws, want) in [
            (ecr, true, true),
            (ecr, false, false),
            ("registry.example:5000/shop", false, true),
            ("amazonaws.com.example/shop", false, true),
        ] {
            assert_eq!(is_within_build(name, aws), want, "{name}, AWS: {aws}");
        }
    }

    #[test]
    fn a_login_is_whole_and_for_one_registry() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = || Some(file.path().to_owned());
        let secret = || Some(Secret::new("pw".to_owned()));
        let host = || some("registry.example");
        let (user, none) = (|| some("ann"), RegistrySettings::default);
        for (settings, want) in [
            (
                RegistrySettings { registry: host(), user: user(), password: secret(), ..none() },
                Ok(()),
            ),
            (
                RegistrySettings {
                    registry: host(),
                    user: user(),
                    password_file: path(),
                    ..none()
                },
                Ok(()),
            ),
            (RegistrySettings { docker_config: path(), ..none() }, Ok(())),
            (RegistrySettings { registry: host(), user: user(), ..none() }, Err("registry_user")),
            (
                RegistrySettings { registry: host(), password: secret(), ..none() },
                Err("registry_password"),
            ),
            (
                RegistrySettings { registry: host(), password_file: path(), ..none() },
                Err("registry_password_file"),
            ),
            (
                RegistrySettings {
                    registry: host(),
                    user: user(),
                    password: secret(),
                    password_file: path(),
                    ..none()
                },
                Err("registry_password_file"),
            ),
            (RegistrySettings { user: user(), password: secret(), ..none() }, Err("registry_user")),
            (
                RegistrySettings { docker_config: Some("/nowhere".into()), ..none() },
                Err("registry_docker_config"),
            ),
        ] {
            let shown = format!("{settings:?}");
            assert!(!shown.contains("pw"), "{shown}");
            assert_eq!(key(settings), want, "{shown}");
        }
    }
}
