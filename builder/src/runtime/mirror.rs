//! The mirror of this machine's own distribution, parsed from apt's settings: the runtime base uses
//! the same one, so no host name is built in. Pure; `packages.rs` reads the files.
//!
//! Supports the one-line format (`deb [options] URI SUITE COMPONENT…`) and deb822 (`.sources`).

use std::path::PathBuf;

/// One line of apt's settings, or one combination of a stanza.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Repository {
    pub(super) uri: String,
    pub(super) suite: String,
    pub(super) components: Vec<String>,
    /// `Signed-By`, if it names a file.
    pub(super) keyring: Option<PathBuf>,
    /// `Trusted: yes`: signatures are not checked.
    pub(super) trusted: bool,
}

/// The distribution's own archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mirror {
    /// The main repository, for debootstrap.
    pub(super) main: Repository,
    /// Main, updates and security updates, as lines for apt.
    pub(super) lines: Vec<String>,
}

/// Components that the base needs: pip is in Ubuntu's `universe`.
const COMPONENTS: [&str; 2] = ["main", "universe"];

/// The archive of the release `codename` among these repositories, which are in apt's own order.
pub(super) fn choose(repositories: &[Repository], codename: &str) -> Option<Mirror> {
    let updates = format!("{codename}-updates");
    let repositories = &merged(repositories);
    let release: Vec<&Repository> = repositories
        .iter()
        .filter(|r| r.suite == codename && r.components.iter().any(|c| c == "main"))
        .collect();
    // Others publish for `bookworm main` too; the distribution is the one with updates for it.
    let has_updates = |r: &&&Repository| {
        repositories.iter().any(|other| other.suite == updates && other.uri == r.uri)
    };
    let main = (*release.iter().find(has_updates).or(release.first())?).clone();
    let ours = |r: &&Repository| {
        r.uri == main.uri && (r.suite == codename || r.suite == updates)
            || r.suite == format!("{codename}-security")
    };
    let lines = repositories.iter().filter(ours).map(Repository::line).collect();
    Some(Mirror { main, lines })
}

/// One repository per archive and suite, with the components of all its lines.
fn merged(repositories: &[Repository]) -> Vec<Repository> {
    let mut merged: Vec<Repository> = Vec::new();
    for repository in repositories {
        let same = |r: &&mut Repository| r.uri == repository.uri && r.suite == repository.suite;
        match merged.iter_mut().find(same) {
            Some(known) => known.components.extend(repository.components.iter().cloned()),
            None => merged.push(repository.clone()),
        }
    }
    merged
}

impl Repository {
    /// The components that the base needs, in debootstrap's format.
    pub(super) fn components(&self) -> String {
        let wanted: Vec<&str> = COMPONENTS
            .into_iter()
            .filter(|wanted| self.components.iter().any(|c| c == wanted))
            .collect();
        wanted.join(",")
    }

    fn line(&self) -> String {
        let options = if self.trusted { "[trusted=yes] " } else { "" };
        format!("deb {options}{} {} {}", self.uri, self.suite, self.components().replace(',', " "))
    }
}

/// Parses the one-line format.
pub(super) fn one_line(text: &str) -> Vec<Repository> {
    text.lines().filter_map(one).collect()
}

fn one(line: &str) -> Option<Repository> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let option = |name: &str| {
        options.split_whitespace().find_map(|o| o.strip_prefix(name)?.strip_prefix('='))
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    repository(uri, suite, words, option("signed-by"), option("trusted"))
}

/// Parses deb822: stanzas of `Key: value`; lines that start with a blank continue a value.
pub(super) fn deb822(text: &str) -> Vec<Repository> {
    let mut found = Vec::new();
    let mut stanza: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            found.extend(stanza_of(&std::mem::take(&mut stanza)));
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((key, value)) = line.split_once(':') {
            stanza.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    found
}

fn stanza_of(fields: &[(String, String)]) -> Vec<Repository> {
    let field = |name: &str| {
        fields.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str())
    };
    let says = |name: &str, word: &str| field(name).split_whitespace().any(|w| w == word);
    if !says("types", "deb") || field("enabled").eq_ignore_ascii_case("no") {
        return Vec::new();
    }
    let mut found = Vec::new();
    for uri in field("uris").split_whitespace() {
        for suite in field("suites").split_whitespace() {
            let components = field("components").split_whitespace();
            let keyring = field("signed-by");
            let trusted = field("trusted");
            found.extend(repository(uri, suite, components, Some(keyring), Some(trusted)));
        }
    }
    found
}

/// `None` for what debootstrap cannot fetch (a disc) and for a flat repository, which is not a
/// distribution.
fn repository<'a>(
    uri: &str,
    suite: &str,
    components: impl Iterator<Item = &'a str>,
    keyring: Option<&str>,
    trusted: Option<&str>,
) -> Option<Repository> {
    let fetched = uri.starts_with("http://") || uri.starts_with("https://");
    // These become arguments of a command and lines of a file.
    let plain = |text: &str| !text.starts_with('-') && text.bytes().all(|b| b.is_ascii_graphic());
    if !fetched || !plain(uri) || !plain(suite) || suite.ends_with('/') {
        return None;
    }
    Some(Repository {
        uri: uri.trim_end_matches('/').to_owned(),
        suite: suite.to_owned(),
        components: components.map(str::to_owned).collect(),
        // An inline key is not a path.
        keyring: keyring.filter(|k| k.starts_with('/') && !k.contains('\n')).map(PathBuf::from),
        trusted: trusted == Some("yes"),
    })
}

/// The release's code name, from `/etc/os-release`. Derivatives of Ubuntu name the release that
/// they are based on.
pub(super) fn codename(os_release: &str) -> Option<String> {
    let value = |key: &str| {
        os_release.lines().find_map(|line| {
            let value = line.strip_prefix(key)?.strip_prefix('=')?.trim_matches('"');
            (!value.is_empty()).then(|| value.to_owned())
        })
    };
    value("UBUNTU_CODENAME").or_else(|| value("VERSION_CODENAME"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 -----END PGP PUBLIC KEY BLOCK-----

Enabled: no
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm-backports
Components: main
";

    #[test]
    fn debian_in_deb822() {
        let mirror = choose(&deb822(DEBIAN), "bookworm").unwrap();
        assert_eq!(mirror.main.uri, "http://mirror.example/debian");
        assert_eq!(mirror.main.components(), "main");
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        assert_eq!(mirror.main.keyring, Some(keyring.into()));
        assert_eq!(
            mirror.lines,
            [
                "deb http://mirror.example/debian bookworm main",
                "deb http://mirror.example/debian bookworm-updates main",
                "deb http://mirror.example/debian-security bookworm-security main",
            ]
        );
    }

    #[test]
    fn ubuntu_in_one_line_format() {
        let text = "\
deb cdrom:[Ubuntu]/ noble main
deb [arch=amd64 signed-by=/k.gpg] https://other.example/apt noble main
# deb http://commented.example/ubuntu noble main
deb http://mirror.example/ubuntu noble main restricted # trailing
deb http://mirror.example/ubuntu noble universe
deb\thttp://mirror.example/ubuntu noble-updates main universe
deb-src http://mirror.example/ubuntu noble main
deb http://security.example/ubuntu noble-security main universe
deb http://flat.example/repo ./
";
        let repositories = one_line(text);
        assert_eq!(repositories[0].keyring, Some("/k.gpg".into()));
        let mirror = choose(&repositories, "noble").unwrap();
        assert_eq!(mirror.main.uri, "http://mirror.example/ubuntu");
        assert_eq!(mirror.main.components(), "main,universe");
        assert!(
            mirror.lines.contains(&"deb http://mirror.example/ubuntu noble main universe".into())
        );
        assert!(mirror.lines.iter().any(|line| line.contains("noble-security")));
        assert!(!mirror.lines.iter().any(|line| line.contains("other.example")));
    }

    #[test]
    fn a_trusted_mirror_stays_trusted() {
        let mirror =
            choose(&one_line("deb [trusted=yes] http://m.example/d trixie main"), "trixie");
        assert_eq!(mirror.unwrap().lines, ["deb [trusted=yes] http://m.example/d trixie main"]);
    }

    macro_rules! nothing {
        ($($name:ident: $text:expr;)*) => {$(
            #[test]
            fn $name() {
                let mut found = one_line($text);
                found.extend(deb822($text));
                assert_eq!(choose(&found, "bookworm"), None);
            }
        )*};
    }

    nothing! {
        an_empty_file: "";
        another_release: "deb http://mirror.example/debian trixie main";
        a_disc: "deb cdrom:[x]/ bookworm main";
        an_option_as_uri: "deb --help bookworm main";
        a_stanza_without_uris: "Types: deb\nSuites: bookworm\nComponents: main\n";
        a_third_party: "deb http://other.example/apt bookworm stable";
    }

    #[test]
    fn code_names() {
        assert_eq!(codename("NAME=x\nVERSION_CODENAME=bookworm\n").as_deref(), Some("bookworm"));
        let mint = "VERSION_CODENAME=wilma\nUBUNTU_CODENAME=\"noble\"\n";
        assert_eq!(codename(mint).as_deref(), Some("noble"));
        assert_eq!(codename("ID=arch\nVERSION_CODENAME=\n"), None);
    }
}
