//! Filters the `.npmrc` of a project to the lines that an install may see, and reads the operator's
//! own, which no project overrides. Pure: parses text.
//!
//! npm trusts a project's `.npmrc` more than the operator's. Its proxy would see the operator's
//! tokens; its authorities and `strict-ssl=false` decide who may answer for a registry. So only
//! harmless settings are passed on: origins of scopes, the project's own tokens for hosts that are
//! not the operator's, and how npm resolves versions. The result is generated line by line from
//! values of a narrow syntax, so that npm reads in it what was read here.

use crate::text::short;
use std::collections::BTreeSet;

/// Switches that only change what is installed for this project.
const SWITCHES: [&str; 5] =
    ["legacy-peer-deps", "strict-peer-deps", "engine-strict", "install-links", "prefer-dedupe"];
/// Passed on where its value is one of these.
const STRATEGY: (&str, [&str; 3]) = ("install-strategy", ["hoisted", "nested", "shallow"]);
/// Without effect on an install in a container; dropped without a note.
const WITHOUT_EFFECT: [&str; 17] = [
    "access",
    "audit",
    "color",
    "fund",
    "git-tag-version",
    "init-author-name",
    "init-license",
    "init-version",
    "loglevel",
    "progress",
    "provenance",
    "save",
    "save-exact",
    "save-prefix",
    "tag-version-prefix",
    "update-notifier",
    "yes",
];
/// Keys of lines for a host, `//HOST/:KEY`. Certificates and keys are files and not listed.
const CREDENTIALS: [&str; 4] = ["_authToken", "_auth", "username", "_password"];
/// Longest accepted value in bytes: tokens of clouds have about 2 KiB.
const LONGEST: usize = 4096;
/// Keys named by one note at most.
const NAMED: usize = 8;

/// The operator's decisions, from the settings file or the builder's environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Operator {
    /// Default registry, if set.
    pub(super) registry: Option<String>,
    /// `@scope:registry` and its URL.
    scopes: Vec<(String, String)>,
    /// `host` or `host:port` of registries and of credentials.
    hosts: BTreeSet<String>,
    /// Key and value of `proxy`, `strict-ssl` and similar, as written.
    connection: Vec<(String, String)>,
    /// `install-links`: folders of a project are copied into its packages instead of linked.
    pub(super) copies: bool,
}

/// What is passed on of a project's file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filtered {
    /// The text for npm.
    pub(super) text: String,
    /// Notes for the developer: what was dropped, and why.
    pub(super) notes: Vec<String>,
}

/// The reason for which a line is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Dropped {
    Operators,
    Set,
    Variable,
    Form,
}

impl Operator {
    /// Parses the operator's `.npmrc`; `registry` is the one from a variable, which takes
    /// precedence.
    pub(super) fn read(text: &str, registry: Option<&str>) -> Self {
        let mut operator = Self::default();
        for (key, value) in lines(text) {
            match key {
                "registry" => operator.registry = Some(value.to_owned()),
                "proxy" | "http-proxy" | "https-proxy" | "noproxy" | "strict-ssl" => {
                    let key = if key == "http-proxy" { "proxy" } else { key };
                    operator.connection.push((key.to_owned(), value.to_owned()));
                }
                "install-links" => operator.copies = value == "true",
                key if is_scope(key) => operator.scopes.push((key.to_owned(), value.to_owned())),
                key => operator.hosts.extend(host_of(key)),
            }
        }
        if let Some(registry) = registry {
            operator.registry = Some(registry.to_owned());
        }
        let named = operator.scopes.iter().map(|(_, url)| url).chain(&operator.registry);
        let named: Vec<_> = named.filter_map(|url| host_of(url)).collect();
        operator.hosts.extend(named);
        operator
    }

    /// The operator's value of a connection key.
    pub(super) fn connection(&self, key: &str) -> Option<&str> {
        let said = self.connection.iter().rev().find(|(name, _)| name == key);
        said.map(|(_, value)| value.as_str())
    }

    /// All that decides the origins of packages, as one text. Without tokens, which may change by
    /// the hour.
    pub(super) fn origins(&self) -> String {
        format!("{:?} {:?} {:?}", self.registry, self.scopes, self.hosts)
    }

    fn names_scope(&self, key: &str) -> bool {
        self.scopes.iter().any(|(scope, _)| scope == key)
    }

    /// Whether a URL would expose the operator's token in plain HTTP that the operator sends by
    /// TLS.
    fn is_exposed_by(&self, url: &str) -> bool {
        let own = self.scopes.iter().map(|(_, url)| url).chain(&self.registry);
        let host = host_of(url);
        url.starts_with("http:")
            && host.as_ref().is_some_and(|host| self.hosts.contains(host))
            && !own.into_iter().any(|own| own.starts_with("http:") && host_of(own) == host)
    }
}

/// Filters a project's file to what an install may see.
pub(super) fn filter_project(text: &str, operator: &Operator) -> Filtered {
    let all: Vec<_> = lines(text).collect();
    let mut left_out: Vec<(Dropped, &str)> = Vec::new();
    let mut allowed: Vec<(&str, &str)> = Vec::new();
    let (registries, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(key, _)| *key == "registry" || is_scope(key));
    for (key, value) in registries {
        let is_set =
            if key == "registry" { operator.registry.is_some() } else { operator.names_scope(key) };
        match value {
            _ if is_set => left_out.push((Dropped::Set, key)),
            value if value.contains('$') => left_out.push((Dropped::Variable, key)),
            value if !is_url(value) => left_out.push((Dropped::Form, key)),
            value if operator.is_exposed_by(value) => left_out.push((Dropped::Operators, key)),
            value => allowed.push((key, value)),
        }
    }
    for (key, value) in others {
        match is_allowed(key, value, operator) {
            Some(Ok(())) => allowed.push((key, value)),
            Some(Err(why)) => left_out.push((why, key)),
            None => {}
        }
    }
    let text = allowed.into_iter().map(|(key, value)| format!("{key}={value}\n")).collect();
    Filtered { text, notes: notes(left_out) }
}

/// `None`: dropped without a note.
fn is_allowed(key: &str, value: &str, operator: &Operator) -> Option<Result<(), Dropped>> {
    if WITHOUT_EFFECT.contains(&key) {
        return None;
    }
    if SWITCHES.contains(&key) {
        return Some(if matches!(value, "true" | "false") { Ok(()) } else { Err(Dropped::Form) });
    }
    if key == STRATEGY.0 {
        return Some(if STRATEGY.1.contains(&value) { Ok(()) } else { Err(Dropped::Form) });
    }
    let Some((place, name)) = key.strip_prefix("//").and_then(|_| key.rsplit_once(":")) else {
        return Some(Err(Dropped::Operators));
    };
    if matches!(name, "email" | "always-auth") {
        return None;
    }
    if !CREDENTIALS.contains(&name) || !is_place(place) {
        return Some(Err(Dropped::Operators));
    }
    Some(match host_of(place) {
        Some(host) if operator.hosts.contains(&host) => Err(Dropped::Set),
        Some(_) if value.contains('$') => Err(Dropped::Variable),
        Some(_) if is_credential(value) => Ok(()),
        Some(_) | None => Err(Dropped::Form),
    })
}

/// Keys and values. Lines below a `[section]` are not npm's.
fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with('['));
    lines.filter(|line| !line.is_empty() && !line.starts_with([';', '#'])).map(|line| {
        let (key, value) = line.split_once('=').unwrap_or((line, "true"));
        (unquoted(key.trim()), unquoted(value.trim()))
    })
}

fn unquoted(text: &str) -> &str {
    let inner = |quote| text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    inner('"').or_else(|| inner('\'')).unwrap_or(text)
}

/// `@scope:registry`
fn is_scope(key: &str) -> bool {
    let scope = key.strip_prefix('@').and_then(|rest| rest.strip_suffix(":registry"));
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._~-".contains(&b);
    scope.is_some_and(|scope| !scope.is_empty() && scope.len() < 215 && scope.bytes().all(fits))
}

/// `https://host/path`, without a user, a query, or characters that npm's parser could interpret.
fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("https:").or_else(|| text.strip_prefix("http:"));
    rest.is_some_and(is_place)
}

/// `//host:port/path`
fn is_place(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._~%:/@+-".contains(&b);
    let host = host_of(text).unwrap_or_default();
    text.len() <= LONGEST
        && text.bytes().all(fits)
        && !host.is_empty()
        && !host.contains(['@', '%'])
}

/// The text between `//` and the next slash, in lower case.
fn host_of(text: &str) -> Option<String> {
    let rest = text.split_once("//")?.1;
    let host = rest.split('/').next()?.to_ascii_lowercase();
    // npm ignores a scheme's default port when it looks for a token.
    let host = [":80", ":443"].iter().find_map(|port| host.strip_suffix(port)).unwrap_or(&host);
    let host = host.to_owned();
    (!host.is_empty()).then_some(host)
}

fn is_credential(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"+/=._~:@-".contains(&b);
    (1..=LONGEST).contains(&text.len()) && text.bytes().all(fits)
}

fn notes(mut left_out: Vec<(Dropped, &str)>) -> Vec<String> {
    left_out.sort_unstable();
    left_out.dedup();
    left_out
        .chunk_by(|(a, _), (b, _)| a == b)
        .filter_map(|same| {
            let why = match same.first()?.0 {
                Dropped::Operators => "only the operator sets that (`builder.npmrc`)",
                Dropped::Set => "the operator has set that",
                Dropped::Variable => {
                    "its value names a variable, and an install has none; write the value, or ask the operator to \
                     set it (`builder.npmrc`)"
                }
                Dropped::Form => "its value is not understood",
            };
            let keys: Vec<_> = same.iter().take(NAMED).map(|(_, key)| format!("`{}`", short(key))).collect();
            let more = match same.len().checked_sub(NAMED) {
                None | Some(0) => String::new(),
                Some(more) => format!(" and {more} more"),
            };
            Some(format!("`.npmrc`: {}{more} left out: {why}", keys.join(", ")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operator() -> Operator {
        Operator::read(
            "; ours\n@ours:registry=https://npm.example/ours/\n//npm.example/:_authToken=${TOKEN}\n\
             http-proxy = \"http://proxy.example:3128\"\nstrict-ssl=false\n[section]\nregistry=http://x/\n",
            None,
        )
    }

    #[test]
    fn what_the_operator_says_is_known() {
        let operator = operator();
        assert_eq!(operator.registry, None);
        assert_eq!(operator.connection("proxy"), Some("http://proxy.example:3128"));
        assert_eq!(operator.connection("strict-ssl"), Some("false"));
        assert_eq!(operator.connection("https-proxy"), None);
        assert!(operator.hosts.contains("npm.example"));
        let one = Operator::read("//a/:_authToken=1\nregistry=https://a/", None);
        let two = Operator::read("//a/:_authToken=2\nregistry=https://a/", None);
        assert_eq!(one.origins(), two.origins());
        let other = Operator::read("registry=https://a/", Some("https://b/"));
        assert_ne!(one.origins(), other.origins());
    }

    #[test]
    fn what_an_install_may_see_stays_and_nothing_else() {
        let long = "x".repeat(LONGEST + 1);
        for (line, stays) in [
            ("legacy-peer-deps=true", true),
            ("engine-strict", true),
            ("install-strategy = nested", true),
            ("install-strategy=linked", false),
            ("registry=https://mirror.example/npm/", true),
            ("registry=\"https://mirror.example/npm/\"", true),
            ("registry=http://mirror.example:4873", true),
            ("@theirs:registry=https://theirs.example", true),
            ("//theirs.example/:_authToken=npm_0aZ", true),
            // Only the operator's.
            ("proxy=http://evil.example", false),
            ("https-proxy=http://evil.example", false),
            ("http-proxy=http://evil.example", false),
            ("noproxy=*", false),
            ("strict-ssl=false", false),
            ("ca=-----BEGIN", false),
            ("ca[]=x", false),
            ("cafile=/app/ca.pem", false),
            ("cert=x", false),
            ("key=x", false),
            ("git=/app/git.sh", false),
            ("script-shell=/app/sh", false),
            ("node-options=--require /app/x", false),
            ("cache=/app/cache", false),
            ("prefix=/app", false),
            ("userconfig=/app/x", false),
            ("globalconfig=/app/x", false),
            ("ignore-scripts=false", false),
            ("offline=true", false),
            ("replace-registry-host=always", false),
            ("_authToken=x", false),
            ("omit[]=optional", false),
            // The operator's scope and host.
            ("@ours:registry=https://evil.example", false),
            ("@other:registry=http://npm.example/", false),
            ("@other:registry=https://npm.example/", true),
            ("//npm.example/:_authToken=x", false),
            ("//NPM.example/:_authToken=x", false),
            ("//npm.example/:certfile=/app/x", false),
            // A token is sent to the host in its line, whatever package is requested there: it is
            // the project's own token.
            ("//other.example/:_authToken=x", true),
            // Forms with another meaning for npm.
            ("//theirs.example/:_authToken=${HTTPS_PROXY}", false),
            ("//theirs.example/:_authToken=a;b", false),
            ("//theirs.example/:_authToken=a b", false),
            ("//theirs.example/:_authToken=", false),
            ("registry=https://${HOST}/", false),
            ("registry=https://a@b/", false),
            ("registry=https://a/?x", false),
            ("registry=https://a/#x", false),
            ("registry=https:///", false),
            ("registry=file:///etc", false),
            ("@${X}:registry=https://a/", false),
            (&format!("registry=https://{long}/"), false),
            ("legacy-peer-deps=${X}", false),
            ("legacy-peer-deps=true;proxy=x", false),
        ] {
            let reduced = filter_project(line, &operator());
            assert_eq!(!reduced.text.is_empty(), stays, "{line}: {reduced:?}");
            assert_eq!(reduced.notes.is_empty(), stays, "{line}: {reduced:?}");
            // What is passed on is unchanged.
            assert_eq!(filter_project(&reduced.text, &operator()).text, reduced.text);
        }
    }

    #[test]
    fn project_tokens_are_dropped_for_the_operators_hosts() {
        let text = "//theirs.example/npm/:_authToken=abc\n@theirs:registry=https://theirs.example/npm/\n\
                    //npm.example:443/:_authToken=abc\n# no\n; no\nfund=false\n[x]\nregistry=https://x/\n";
        let reduced = filter_project(text, &operator());
        assert_eq!(
            reduced.text,
            "@theirs:registry=https://theirs.example/npm/\n//theirs.example/npm/:_authToken=abc\n"
        );
        assert_eq!(reduced.notes.len(), 1, "{reduced:?}");
        assert!(reduced.notes[0].contains("`//npm.example:443/:_authToken`"), "{reduced:?}");
    }

    #[test]
    fn the_operators_registry_stays() {
        let operator = Operator::read("registry=https://npm.example/", None);
        let reduced = filter_project(
            "registry=https://evil.example/\n//npm.example/:_authToken=x",
            &operator,
        );
        assert_eq!(reduced.text, "");
        assert!(reduced.notes[0].contains("operator has set"), "{reduced:?}");
    }

    #[test]
    fn one_note_for_one_reason() {
        let text = "proxy=x\nstrict-ssl=false\nproxy=y\n";
        let notes = filter_project(text, &Operator::default()).notes;
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("`proxy`, `strict-ssl` left out"), "{notes:?}");
        let many: String = (0..20).map(|n| format!("key-{n}=x\n")).collect();
        assert!(filter_project(&many, &Operator::default()).notes[0].contains("and 12 more"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_gets_more_than_that_through(text in "[a-z@:/=.$\\{\\}\\[\\]\"' ;#\\\\\\n-]{0,200}") {
            let reduced = filter_project(&text, &operator());
            for line in reduced.text.lines() {
                let (key, value) = line.split_once('=').unwrap();
                proptest::prop_assert!(
                    key == "registry" || is_scope(key) || SWITCHES.contains(&key) || key == STRATEGY.0 || key.starts_with("//"),
                    "{}", line
                );
                proptest::prop_assert!(!value.contains(['$', ';', '#', '"', ' ']), "{}", line);
            }
        }
    }
}
