//! Credentials in a `config.json`, as `docker login` writes it. Only `auths` are read: helpers are
//! programs of the person who logged in, and are not run. Pure; `access.rs` reads the file.

use crate::{Host, Login};
use base64::{Engine, prelude::BASE64_STANDARD};
use epsilon_api::redacted::Secret;
use serde::Deserialize;
use std::collections::HashMap;

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    auths: HashMap<String, Auth>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// The credentials for this host, or what is wrong with the file.
pub(crate) fn login(text: &str, host: &Host) -> Result<Option<Login>, String> {
    let config: Config = serde_json::from_str(text)
        .map_err(|err| format!("it is not JSON as Docker writes it ({err})"))?;
    let found = config.auths.iter().find(|(name, _)| host_of(name) == *host);
    match found {
        Some((_, auth)) if !auth.identitytoken.is_empty() => {
            Err(format!("it holds an identity token for `{host}`; only user and password are read"))
        }
        Some((_, auth)) if !auth.auth.is_empty() => match decode(&auth.auth) {
            Some(login) => Ok(Some(login)),
            None => Err(format!("`auth` of `{host}` is not `user:password` in base64")),
        },
        Some((_, auth)) if !auth.username.is_empty() => Ok(Some(Login {
            user: auth.username.clone(),
            password: Secret::new(auth.password.clone()),
        })),
        // With a helper, Docker writes an empty entry.
        Some(_) | None => {
            let helper = config.cred_helpers.iter().find(|(name, _)| host_of(name) == *host);
            let helper =
                helper.map(|(_, helper)| helper).or(found.and(config.creds_store.as_ref()));
            match helper {
                // This crate does the helper's work itself.
                Some(helper) if helper == "ecr-login" => Ok(None),
                Some(helper) => Err(format!(
                    "it leaves `{host}` to the helper `{helper}`, which is not run; name user and password"
                )),
                None => Ok(None),
            }
        }
    }
}

/// Keys are hosts, or addresses of the old form: `https://index.docker.io/v1/`.
fn host_of(key: &str) -> Host {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    match key.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => Host::of_registry("docker.io"),
        host => Host::of_registry(host),
    }
}

fn decode(auth: &str) -> Option<Login> {
    let plain = String::from_utf8(BASE64_STANDARD.decode(auth).ok()?).ok()?;
    // Docker itself pads with zeros at times.
    let (user, password) = plain.trim_end_matches('\0').split_once(':')?;
    Some(Login { user: user.to_owned(), password: Secret::new(password.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, host: &str) -> Result<Option<(String, String)>, String> {
        let login = login(text, &Host::of_registry(host))?;
        Ok(login.map(|login| (login.user, login.password.reveal().clone())))
    }

    fn pair(user: &str, password: &str) -> Result<Option<(String, String)>, String> {
        Ok(Some((user.to_owned(), password.to_owned())))
    }

    #[test]
    fn logins_are_found_by_host() {
        let auth = BASE64_STANDARD.encode("ann:a:b~?>");
        let text = format!(
            r#"{{ "auths": {{
                "registry.example:5000": {{ "auth": "{auth}" }},
                "https://old.example/v1/": {{ "username": "bob", "password": "pw" }},
                "https://index.docker.io/v1/": {{ "username": "hub", "password": "pw" }}
            }}, "HttpHeaders": {{}} }}"#
        );
        assert_eq!(read(&text, "registry.example:5000"), pair("ann", "a:b~?>"));
        assert_eq!(read(&text, "old.example"), pair("bob", "pw"));
        assert_eq!(read(&text, "docker.io"), pair("hub", "pw"));
        assert_eq!(read(&text, "registry.example"), Ok(None), "another port is another registry");
        assert_eq!(read("{}", "registry.example"), Ok(None));
    }

    #[test]
    fn unusable_entries_are_reported() {
        for (text, part) in [
            ("", "not JSON"),
            (r#"{"auths":{"r.example":{"auth":"%%"}}}"#, "base64"),
            (r#"{"auths":{"r.example":{"identitytoken":"x"}}}"#, "identity token"),
            (r#"{"credHelpers":{"r.example":"gcloud"}}"#, "helper `gcloud`"),
            (r#"{"auths":{"r.example":{}},"credsStore":"desktop"}"#, "helper `desktop`"),
        ] {
            let said = read(text, "r.example").unwrap_err();
            assert!(said.contains(part), "{text}: {said}");
        }
        assert_eq!(read(r#"{"credHelpers":{"r.example":"ecr-login"}}"#, "r.example"), Ok(None));
        assert_eq!(
            read(r#"{"credsStore":"desktop"}"#, "r.example"),
            Ok(None),
            "it never logged in"
        );
    }
}
