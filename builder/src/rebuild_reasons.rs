//! Explains why functions are rebuilt: compares the inputs of a project's last build with the
//! current ones. Only for people: which functions are built is decided by the digests of
//! [`crate::plan`].

use crate::{
    plan::{FunctionPlan, Plan},
    source::{Hasher, Source},
};
use epsilon_api::ids::FunctionName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Names listed on one line at most.
const LISTED: usize = 8;

/// The inputs of a build.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Snapshot {
    runtime: String,
    packages: String,
    /// Digests of files, by path.
    files: BTreeMap<String, String>,
    /// Digests of settings, by function.
    functions: BTreeMap<FunctionName, String>,
}

impl Snapshot {
    pub(crate) fn of(plan: &Plan, source: &Source, runtime: &str, packages: &str) -> Self {
        let files = source.files.iter().map(|file| {
            let digest = file.digest_into(Hasher::default()).finish();
            (file.path.clone(), digest.to_string())
        });
        let folders = source.empty_folders.iter().map(|path| (format!("{path}/"), String::new()));
        let functions = plan.functions.iter().map(|function| {
            let spec = serde_json::to_vec(&function.spec).unwrap_or_default();
            (function.name.clone(), Hasher::default().part(&spec).finish().to_string())
        });
        Self {
            runtime: runtime.to_owned(),
            packages: packages.to_owned(),
            files: files.chain(folders).collect(),
            functions: functions.collect(),
        }
    }
}

/// Lines naming the functions that were rebuilt and why, and those that were not. None at a
/// project's first build, and when nothing is built.
pub(crate) fn explain(
    before: Option<&Snapshot>,
    now: &Snapshot,
    plan: &Plan,
    source: &Source,
    is_built: impl Fn(&FunctionPlan) -> bool,
) -> Vec<String> {
    let Some(before) = before else { return Vec::new() };
    let (built, unchanged): (Vec<_>, Vec<_>) = plan.functions.iter().partition(|f| is_built(f));
    if built.is_empty() {
        return Vec::new();
    }
    let mut reasons: BTreeMap<String, Vec<&FunctionPlan>> = BTreeMap::new();
    for function in built {
        reasons.entry(reason(before, now, function, source)).or_default().push(function);
    }
    let mut lines: Vec<_> =
        reasons.into_iter().map(|(why, of)| format!("built {}: {why}", names(&of))).collect();
    if !unchanged.is_empty() {
        lines.push(format!("not rebuilt, no file that they reach changed: {}", names(&unchanged)));
    }
    lines.extend(plan.unknown.iter().filter(|_| plan.functions.len() > 1).cloned());
    lines
}

fn reason(before: &Snapshot, now: &Snapshot, function: &FunctionPlan, source: &Source) -> String {
    let mut reasons = Vec::new();
    match before.functions.get(&function.name) {
        None => return "new".to_owned(),
        Some(settings) if now.functions.get(&function.name) != Some(settings) => {
            reasons.push("its settings changed".to_owned());
        }
        Some(_) => {}
    }
    if before.runtime != now.runtime {
        reasons.push("the runtime base changed".to_owned());
    }
    if before.packages != now.packages {
        reasons.push("its packages changed".to_owned());
    }
    reasons.extend(files(before, now, |path| {
        source.files.iter().position(|f| f.path == path).is_some_and(|at| function.counted.has(at))
    }));
    if reasons.is_empty() {
        // A removed file, or what a file outside of its reach loads now.
        reasons.extend(files(before, now, |_| true));
    }
    if reasons.is_empty() {
        return "its image was missing".to_owned();
    }
    reasons.join(", ")
}

/// Changed files, as one text.
fn files(before: &Snapshot, now: &Snapshot, counts: impl Fn(&str) -> bool) -> Option<String> {
    let new = now.files.iter().filter_map(|(path, digest)| match before.files.get(path) {
        Some(old) if old == digest => None,
        Some(_) => Some((path, "changed")),
        None => Some((path, "added")),
    });
    let gone = before.files.keys().filter(|path| !now.files.contains_key(*path));
    let changes: Vec<_> = new
        .chain(gone.map(|path| (path, "removed")))
        .filter(|(path, _)| counts(path.as_str()))
        .map(|(path, how)| format!("`{path}` {how}"))
        .collect();
    (!changes.is_empty()).then(|| listed(&changes))
}

fn names(functions: &[&FunctionPlan]) -> String {
    listed(&functions.iter().map(|f| format!("`{}`", f.name)).collect::<Vec<_>>())
}

fn listed(all: &[String]) -> String {
    match all.get(LISTED..) {
        None | Some([]) => all.join(", "),
        Some(rest) => format!("{} and {} more", all[..LISTED].join(", "), rest.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        inspection::Inspection,
        manifest::{Ceilings, Manifest},
        source::tests::project,
    };

    const INDEX: &str = r#"{"entry":"index.js","error":null,"exports":[
        {"name":"a","signature":"express","config":null,"reach":{"files":["index.js","a.js"],"code":""}},
        {"name":"b","signature":"express","config":null,"reach":{"files":["index.js","b.js"],"code":""}}],
        "files":["index.js","a.js","b.js"],"dynamic":[]}"#;

    /// The lines for a change from these files to those, and of the packages.
    async fn lines(old: &[(&str, &str)], new: &[(&str, &str)], packages: [&str; 2]) -> String {
        let planned = async |files: &[(&str, &str)], packages: &str| {
            let (work, source) = project(files).await;
            let manifest = Manifest::read(&source, Some("shop"), &Ceilings::default()).unwrap();
            let seen = Inspection::parse(format!(r#"{{"entries":[{INDEX}]}}"#).as_bytes()).unwrap();
            let plan = crate::plan::plan(&manifest, &source, &seen, &[]).unwrap();
            let snapshot = Snapshot::of(&plan, &source, "runtime", packages);
            (work, source, plan, snapshot)
        };
        let (_one, _, old, before) = planned(old, packages[0]).await;
        let (_two, source, plan, now) = planned(new, packages[1]).await;
        let is_built = |function: &FunctionPlan| {
            packages[0] != packages[1]
                || !old.functions.iter().any(|f| f.content == function.content)
        };
        explain(Some(&before), &now, &plan, &source, is_built).join("; ")
    }

    #[tokio::test]
    async fn rebuilt_functions_are_listed_with_changed_files() {
        let files = [("index.js", "1"), ("a.js", "1"), ("b.js", "1")];
        let with = |path: &'static str, text: &'static str| {
            let mut files = files.to_vec();
            files.retain(|(p, _)| *p != path);
            files.push((path, text));
            files
        };
        let not = "; not rebuilt, no file that they reach changed: ";
        for (new, want) in [
            (files.to_vec(), String::new()),
            (with("a.js", "2"), format!("built `a`: `a.js` changed{not}`b`")),
            (with("index.js", "2"), "built `a`, `b`: `index.js` changed".into()),
            (with("page.html", "2"), "built `a`, `b`: `page.html` added".into()),
            (
                with("epsilon.yaml", "functions: {a: {timeout: 1s}, b: {}}"),
                format!("built `a`: its settings changed{not}`b`"),
            ),
        ] {
            assert_eq!(lines(&files, &new, ["", ""]).await, want);
        }
        let removed = lines(&with("page.html", "1"), &files, ["", ""]).await;
        assert_eq!(removed, "built `a`, `b`: `page.html` removed");
        let packages = lines(&files, &files, ["1", "2"]).await;
        assert_eq!(packages, "built `a`, `b`: its packages changed");
    }

    #[tokio::test]
    async fn a_first_build_needs_no_reasons() {
        let (_work, source) = project(&[("index.js", "1")]).await;
        let plan = Plan { functions: Vec::new(), notes: Vec::new(), unknown: Vec::new() };
        let now = Snapshot::of(&plan, &source, "", "");
        assert!(explain(None, &now, &plan, &source, |_| true).is_empty());
    }
}
