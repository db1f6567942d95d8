//! After the HTTP rules: which function, or which of its versions (`/name@3`, `name--v3.domain`),
//! the request is for. Pure. A name is compared as it was sent, without decoding or folding, so
//! `%2e%2e`, `__proto__` and the like simply match nothing. `version_cache` caches versions that
//! are called only by their own address; `negative_lookup` reads functions from the store that this
//! gateway does not know yet.

pub(crate) mod negative_lookup;
pub(crate) mod version_cache;

use crate::routes::{Route, Table};
use epsilon_api::{error::CallError, ids::VersionNumber};
use http::{Method, Uri, uri::PathAndQuery};
use std::sync::Arc;

/// Longest part of an unknown name that is repeated in an answer.
const QUOTED: usize = 80;

/// What a request is addressed to.
#[derive(Debug)]
pub(crate) enum Target {
    /// `GET /`: health check of the gateway.
    Health,
    /// A function, and the target as the function sees it.
    Function(Arc<Route>, Uri, Addressed),
    /// One version of a function.
    Version(Arc<Route>, VersionNumber, Uri, Addressed),
}

/// Where the request carried the function's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Addressed {
    /// In the host: the function has its own origin.
    ByHost,
    /// In the path: the function shares its origin with all others.
    ByPath,
}

/// Finds the function by the host's first label if a domain is set and the host is below it, else
/// by the path's first segment.
pub(crate) fn lookup(
    table: &Table,
    domain: Option<&str>,
    method: &Method,
    uri: &Uri,
    host: &str,
) -> Result<Target, CallError> {
    if let Some(label) = domain.and_then(|domain| label_before(host, domain)) {
        let whole = uri.path_and_query().cloned().unwrap_or(ROOT).into();
        // A function may have a name that looks like a version of another one; an exact name wins.
        if let Some(route) = table.named_in_host(label) {
            return Ok(Target::Function(Arc::clone(route), whole, Addressed::ByHost));
        }
        let (route, number) = version(label, IN_HOST, |name| table.named_in_host(name))?;
        return Ok(Target::Version(Arc::clone(route), number, whole, Addressed::ByHost));
    }
    let (name, rest) = split(uri.path());
    if name.is_empty() && rest.is_empty() && matches!(*method, Method::GET | Method::HEAD) {
        return Ok(Target::Health);
    }
    let target = || {
        inner_target(rest, uri.query())
            .ok_or(CallError::BadRequest("the path after the function's name is invalid"))
    };
    if let Some(route) = table.named(name) {
        return Ok(Target::Function(Arc::clone(route), target()?, Addressed::ByPath));
    }
    let (route, number) = version(name, IN_PATH, |name| table.named(name))?;
    Ok(Target::Version(Arc::clone(route), number, target()?, Addressed::ByPath))
}

/// Separator between a function's name and a version number, in a path and in a host name.
pub(crate) const IN_PATH: &str = "@";
pub(crate) const IN_HOST: &str = "--v";

/// `name@3`: the function and the number.
fn version<'t>(
    text: &str,
    between: &str,
    find: impl FnOnce(&str) -> Option<&'t Arc<Route>>,
) -> Result<(&'t Arc<Route>, VersionNumber), CallError> {
    let found = text.rsplit_once(between).and_then(|(name, number)| {
        // Each number has one spelling: no sign, no leading zeros.
        let number = number.starts_with(|c: char| matches!(c, '1'..='9')).then_some(number)?;
        Some((find(name)?, number.parse().ok()?))
    });
    found.ok_or_else(|| not_found(text))
}

const ROOT: PathAndQuery = PathAndQuery::from_static("/");

/// `/name/rest` → (`name`, `/rest`).
fn split(path: &str) -> (&str, &str) {
    let path = path.strip_prefix('/').unwrap_or(path);
    path.split_at(path.find('/').unwrap_or(path.len()))
}

/// `Name.fn.example.org:8080` in `fn.example.org` → `Name`.
fn label_before<'a>(host: &'a str, domain: &str) -> Option<&'a str> {
    let host = match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => host,
    };
    let (label, parent) = host.split_once('.')?;
    (!label.is_empty() && parent.eq_ignore_ascii_case(domain)).then_some(label)
}

fn inner_target(rest: &str, query: Option<&str>) -> Option<Uri> {
    let rest = if rest.is_empty() { "/" } else { rest };
    let target = match query {
        None if rest == "/" => ROOT,
        None => PathAndQuery::try_from(rest).ok()?,
        Some(query) => PathAndQuery::try_from([rest, "?", query].concat()).ok()?,
    };
    Some(target.into())
}

fn not_found(name: &str) -> CallError {
    CallError::FunctionNotFound(name.chars().filter(|c| !c.is_control()).take(QUOTED).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{observe::metrics::Metrics, routes::Routes, testing};
    use proptest::prelude::*;

    fn table(names: &[&str]) -> Arc<Table> {
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let versions = names.iter().map(|name| testing::version(name, 1)).collect();
        Arc::clone(&Routes::new(versions, Vec::new(), metrics).table())
    }

    /// The result of a request for `uri`: `name target`, `health`, or the code of the error.
    fn find(domain: Option<&str>, host: &str, uri: &str) -> String {
        let table = table(&["hello", "sendMail", "Twin", "twin", "like--v2"]);
        let uri: Uri = uri.parse().unwrap();
        match lookup(&table, domain, &Method::GET, &uri, host) {
            Ok(Target::Health) => "health".into(),
            Ok(Target::Function(route, target, _)) => {
                format!("{} {target}", route.version.function)
            }
            Ok(Target::Version(route, number, target, _)) => {
                format!("{} {number} {target}", route.version.function)
            }
            Err(err) => err.verdict().code.into(),
        }
    }

    macro_rules! by_path {
        ($($name:ident: $uri:expr => $found:expr;)*) => {$(
            #[test]
            fn $name() {
                assert_eq!(find(None, "localhost", $uri), $found);
            }
        )*};
    }

    by_path! {
        the_root_is_health: "/" => "health";
        a_name_alone_sees_the_root: "/hello" => "hello /";
        a_slash_after_the_name: "/hello/" => "hello /";
        the_path_after_the_name: "/hello/a/b" => "hello /a/b";
        the_query_is_forwarded_as_sent: "/hello?a=%20&a=2&&" => "hello /?a=%20&a=2&&";
        an_empty_query_stays: "/hello/x?" => "hello /x?";
        dots_are_the_functions_business: "/hello/../x/%2e%2e" => "hello /../x/%2e%2e";
        doubled_slashes_stay: "/hello//x" => "hello //x";
        absolute_form: "http://localhost/hello/x?y" => "hello /x?y";
        case_matters: "/Hello" => "FUNCTION_NOT_FOUND";
        an_empty_name: "//hello" => "FUNCTION_NOT_FOUND";
        escapes_are_not_decoded: "/%68ello" => "FUNCTION_NOT_FOUND";
        object_prototype: "/__proto__" => "FUNCTION_NOT_FOUND";
        constructor: "/constructor" => "FUNCTION_NOT_FOUND";
        parent_folder: "/../hello" => "FUNCTION_NOT_FOUND";
        escaped_parent_folder: "/%2e%2e" => "FUNCTION_NOT_FOUND";
        escaped_slash: "/..%2fhello" => "FUNCTION_NOT_FOUND";
        shell_characters: "/hello;id|sh$(x)" => "FUNCTION_NOT_FOUND";
        a_version: "/hello@3" => "hello 3 /";
        a_version_and_what_follows: "/hello@12/a/b?c" => "hello 12 /a/b?c";
        the_largest_version: "/hello@4294967295" => "hello 4294967295 /";
        beyond_the_largest_version: "/hello@4294967296" => "FUNCTION_NOT_FOUND";
        version_zero: "/hello@0" => "FUNCTION_NOT_FOUND";
        a_version_with_zeros: "/hello@03" => "FUNCTION_NOT_FOUND";
        a_version_with_a_sign: "/hello@+3" => "FUNCTION_NOT_FOUND";
        no_version: "/hello@" => "FUNCTION_NOT_FOUND";
        a_word_for_a_version: "/hello@latest" => "FUNCTION_NOT_FOUND";
        two_versions: "/hello@3@4" => "FUNCTION_NOT_FOUND";
        a_version_of_nothing: "/@3" => "FUNCTION_NOT_FOUND";
        a_version_of_an_unknown_function: "/missing@3" => "FUNCTION_NOT_FOUND";
        a_host_s_way_in_a_path: "/hello--v3" => "FUNCTION_NOT_FOUND";
        three_hundred_characters: &format!("/{}", "a".repeat(300)) => "FUNCTION_NOT_FOUND";
    }

    #[test]
    fn a_host_of_the_domain_names_the_function() {
        let domain = Some("fn.example.org");
        for (host, uri, found) in [
            ("hello.fn.example.org", "/a?b", "hello /a?b"),
            ("hello.fn.example.org:8080", "/", "hello /"),
            ("SENDMAIL.FN.example.org", "/", "sendMail /"),
            ("Twin.fn.example.org", "/", "Twin /"),
            ("twin.fn.example.org", "/", "twin /"),
            ("TWIN.fn.example.org", "/", "FUNCTION_NOT_FOUND"),
            ("missing.fn.example.org", "/hello", "FUNCTION_NOT_FOUND"),
            ("hello--v3.fn.example.org", "/a?b", "hello 3 /a?b"),
            ("SENDMAIL--V3.FN.example.org", "/", "FUNCTION_NOT_FOUND"),
            ("sendmail--v3.fn.example.org", "/", "sendMail 3 /"),
            ("like--v2.fn.example.org", "/", "like--v2 /"),
            ("like--v2--v3.fn.example.org", "/", "like--v2 3 /"),
            ("hello--v.fn.example.org", "/", "FUNCTION_NOT_FOUND"),
            ("--v3.fn.example.org", "/", "FUNCTION_NOT_FOUND"),
            ("hello@3.fn.example.org", "/", "FUNCTION_NOT_FOUND"),
            ("a.hello.fn.example.org", "/hello/x", "hello /x"),
            ("fn.example.org", "/hello/x", "hello /x"),
            ("example.org", "/", "health"),
            ("127.0.0.1:8080", "/hello", "hello /"),
            ("[::1]:8080", "/hello", "hello /"),
        ] {
            assert_eq!(find(domain, host, uri), found, "{host} {uri}");
        }
    }

    proptest! {
        #[test]
        fn any_target_is_answered(text in "/[!-~]{0,400}", host in "\\PC{0,80}") {
            if let Ok(uri) = text.parse::<Uri>() {
                let table = table(&["hello"]);
                let _ = lookup(&table, Some("example.org"), &Method::GET, &uri, &host);
            }
        }

        #[test]
        fn the_function_sees_what_follows_its_name(rest in "(/[a-z.%0-9_-]{0,9}){1,4}", query in "[a-z=&%0-9]{0,20}") {
            let uri: Uri = format!("/hello{rest}?{query}").parse().unwrap();
            match lookup(&table(&["hello"]), None, &Method::GET, &uri, "x").unwrap() {
                Target::Function(_, seen, _) => prop_assert_eq!(seen.to_string(), format!("{rest}?{query}")),
                Target::Health | Target::Version(..) => prop_assert!(false),
            }
        }
    }
}
