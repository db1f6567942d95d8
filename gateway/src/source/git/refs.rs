//! What a push changes, and which part of it is deployed. Pure: no I/O.

use super::config::Config;
use std::fmt;

const BRANCHES: &str = "refs/heads/";
const TAGS: &str = "refs/tags/";
/// Digits of a commit id that are shown.
const SHORT: usize = 7;

/// The id of a git object.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ObjectId(String);

impl ObjectId {
    /// Parses SHA-1 or SHA-256 in hexadecimal digits.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (matches!(text.len(), 40 | 64) && is_hex).then(|| Self(text.to_owned()))
    }

    /// Whether it is the null id, which means that a ref does not exist.
    pub(crate) fn is_null(&self) -> bool {
        self.0.bytes().all(|b| b == b'0')
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// A short form for people.
    pub(crate) fn short(&self) -> &str {
        &self.0[..SHORT]
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One branch or tag that a push moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Update {
    pub(crate) old: ObjectId,
    pub(crate) new: ObjectId,
    pub(crate) name: String,
}

impl Update {
    /// Parses a line of git's pre-receive hook: `OLD NEW NAME`.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(3, ' ');
        let (old, new) = (ObjectId::parse(words.next()?)?, ObjectId::parse(words.next()?)?);
        let name = words.next().filter(|name| !name.is_empty())?;
        Some(Self { old, new, name: name.to_owned() })
    }

    /// The name for people: `main`, `tag v1`, or the full name of other refs.
    pub(crate) fn shown(&self) -> String {
        match (self.name.strip_prefix(BRANCHES), self.name.strip_prefix(TAGS)) {
            (Some(branch), _) => branch.to_owned(),
            (_, Some(tag)) => format!("tag {tag}"),
            (None, None) => self.name.clone(),
        }
    }
}

/// What to do with a push.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Refuse it, for this reason.
    Refuse(String),
    /// Store it; the notes say why nothing is deployed.
    Keep(Vec<String>),
    /// Deploy this update before anything is stored; the notes are about the others.
    Deploy(Update, Vec<String>),
}

/// Decides. One push deploys at most one commit: the branch takes precedence over tags.
pub(crate) fn plan(updates: &[Update], config: &Config) -> Plan {
    let branch = format!("{BRANCHES}{}", config.branch);
    let gone = |update: &&Update| update.new.is_null();
    if updates.iter().filter(gone).any(|update| update.name == branch) {
        return Plan::Refuse(format!(
            "{} is the deployed branch and cannot be deleted; `epsilon delete NAME` removes a function",
            config.branch
        ));
    }
    let pushed = || updates.iter().filter(|update| !update.new.is_null());
    let tags: Vec<_> = pushed().filter(|update| is_deployed_tag(&update.name, config)).collect();
    let chosen = match (pushed().find(|update| update.name == branch), &tags[..]) {
        (Some(branch), _) => Some(branch),
        (None, [tag]) => Some(*tag),
        (None, _) => None,
    };
    let others = updates.iter().filter(|update| chosen != Some(*update));
    let mut notes: Vec<_> = others.map(|update| note(update, config)).collect();
    notes.dedup();
    if let (None, [_, _, ..]) = (chosen, &tags[..]) {
        notes = vec![format!(
            "{} tags are stored, none is deployed: push one of them to deploy it",
            tags.len()
        )];
    }
    match chosen {
        Some(update) => Plan::Deploy(update.clone(), notes),
        None => Plan::Keep(notes),
    }
}

/// Why this update is not deployed.
fn note(update: &Update, config: &Config) -> String {
    let shown = update.shown();
    if update.new.is_null() {
        return format!("{shown} is deleted; the functions are not changed");
    }
    if !update.name.starts_with(BRANCHES) {
        return format!("{shown} is stored, not deployed");
    }
    let main = &config.branch;
    format!("{shown} is stored; {main} is deployed: git push REMOTE {shown}:{main}")
}

fn is_deployed_tag(name: &str, config: &Config) -> bool {
    match (name.strip_prefix(TAGS), &config.tags) {
        (Some(tag), Some(pattern)) => matches(pattern, tag),
        (None, _) | (_, None) => false,
    }
}

/// Whether a name matches a pattern; `*` matches any text, also none.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(first) else { return false };
    (0..=name.len()).any(|at| name.get(at..).is_some_and(|tail| matches(rest, tail)))
}

#[cfg(test)]
mod tests {
    use super::{Plan::*, *};
    use crate::source::git::config::Settings;
    use epsilon_api::units::Bytes;

    const NULL: &str = "0000000000000000000000000000000000000000";
    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn update(old: &str, new: &str, name: &str) -> Update {
        Update::parse(&format!("{old} {new} {name}")).unwrap()
    }

    /// The plan for a push of these updates, in one line.
    fn decided(tags: Option<&str>, updates: &[Update]) -> String {
        let settings = Settings { tags: tags.map(str::to_owned), ..Settings::default() };
        let config = Config::new(settings, Bytes::mib(512)).unwrap();
        match plan(updates, &config) {
            Refuse(why) => format!("refuse: {why}"),
            Keep(notes) => format!("keep: {}", notes.join(" | ")),
            Deploy(update, notes) => format!("deploy {}: {}", update.shown(), notes.join(" | ")),
        }
    }

    macro_rules! plans {
        ($($name:ident: tags $tags:expr, [$(($old:expr, $new:expr, $ref:expr)),+] => $want:expr;)*) => {$(
            #[test]
            fn $name() {
                assert_eq!(decided($tags, &[$(update($old, $new, $ref)),+]), $want);
            }
        )*};
    }

    plans! {
        first_push: tags None, [(NULL, A, "refs/heads/main")] => "deploy main: ";
        next_push: tags None, [(A, B, "refs/heads/main")] => "deploy main: ";
        other_branch: tags None, [(A, B, "refs/heads/fix/x")]
            => "keep: fix/x is stored; main is deployed: git push REMOTE fix/x:main";
        main_of_another_kind: tags None, [(A, B, "refs/notes/main")]
            => "keep: refs/notes/main is stored, not deployed";
        branch_and_other: tags None, [(A, B, "refs/heads/x"), (A, B, "refs/heads/main")]
            => "deploy main: x is stored; main is deployed: git push REMOTE x:main";
        gone: tags None, [(A, NULL, "refs/heads/main")]
            => "refuse: main is the deployed branch and cannot be deleted; `epsilon delete NAME` removes a function";
        other_gone: tags None, [(A, NULL, "refs/heads/x")] => "keep: x is deleted; the functions are not changed";
        main_pushed_other_gone: tags None, [(A, B, "refs/heads/main"), (A, NULL, "refs/heads/x")]
            => "deploy main: x is deleted; the functions are not changed";
        tag_without_setting: tags None, [(NULL, A, "refs/tags/v1")] => "keep: tag v1 is stored, not deployed";
        tag: tags Some("v*"), [(NULL, A, "refs/tags/v1")] => "deploy tag v1: ";
        tag_of_another_name: tags Some("v*"), [(NULL, A, "refs/tags/x1")] => "keep: tag x1 is stored, not deployed";
        tag_gone: tags Some("v*"), [(A, NULL, "refs/tags/v1")] => "keep: tag v1 is deleted; the functions are not changed";
        branch_before_tag: tags Some("v*"), [(NULL, A, "refs/tags/v1"), (A, B, "refs/heads/main")]
            => "deploy main: tag v1 is stored, not deployed";
        many_tags: tags Some("v*"), [(NULL, A, "refs/tags/v1"), (NULL, B, "refs/tags/v2")]
            => "keep: 2 tags are stored, none is deployed: push one of them to deploy it";
    }

    #[test]
    fn patterns() {
        for (pattern, name, want) in [
            ("v1", "v1", true),
            ("v1", "v12", false),
            ("v*", "v", true),
            ("v*", "w", false),
            ("*", "", true),
            ("v*-rc*", "v1-rc", true),
            ("v*-rc*", "v1", false),
            ("*.*", "ä.ö", true),
        ] {
            assert_eq!(matches(pattern, name), want, "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_no_update_is_none() {
        for line in ["", "a b c", &format!("{A} {B}"), &format!("{A} {B} "), &format!("{A} ../x y")]
        {
            assert_eq!(Update::parse(line), None, "{line}");
        }
        assert!(ObjectId::parse(NULL).unwrap().is_null());
    }
}
