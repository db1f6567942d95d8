//! Builds: which functions a change rebuilds and what the log says, and `epsilon build`, whose
//! images follow only from the source and the base.

use crate::up;
use epsilon_e2e::{cli, engine, project, up::binary};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime},
};
use tokio::process::Command;

/// The engine's socket.
const SOCKET: &str = "/var/run/docker.sock";
/// A user id unknown to this machine.
const OTHER_USER: u32 = 12_345;

#[tokio::test]
async fn change_rebuilds_only_functions_that_reach_it() {
    let up = up().await;
    let project = project!("sharers", {
        "index.js" => "
const { one } = require('./lib/one');
const { two } = require('./lib/two');
const mark = require('./lib/mark');
module.exports.shareOne = { func: async (req, res) => res.send(mark(one())), config: { timeout: 10_000 } };
module.exports.shareTwo = { func: async (req, res) => res.send(mark(two())) };
",
        "lib/one.js" => "exports.one = () => 'one'",
        "lib/two.js" => "exports.two = () => 'two'",
        "lib/mark.js" => "module.exports = (text) => `${text}!`",
    });
    up.deploy(&project).await.done();

    project.write("lib/two.js", "exports.two = () => 'TWO'");
    let second = up.deploy(&project).await;
    assert_eq!(second.changed(), [("shareTwo".into(), 2)]);
    let log = second.log();
    assert!(log.contains("built `shareTwo`: `lib/two.js` changed"), "{log}");
    assert!(log.contains("not rebuilt, no file that they reach changed: `shareOne`"), "{log}");
    assert_eq!(up.get("/shareOne").await.expect(200).text(), "one!");
    assert_eq!(up.get("/shareTwo").await.expect(200).text(), "TWO!");

    project.write("lib/mark.js", "module.exports = (text) => `${text}?`");
    let third = up.deploy(&project).await;
    assert_eq!(third.changed(), [("shareOne".into(), 2), ("shareTwo".into(), 3)]);
    assert!(
        third.log().contains("`shareOne`, `shareTwo`: `lib/mark.js` changed"),
        "{}",
        third.log()
    );

    project.write("lib/two.js", "globalThis.seen = true; exports.two = () => 'TWO'");
    let fourth = up.deploy(&project).await;
    assert_eq!(fourth.changed(), [("shareOne".into(), 3), ("shareTwo".into(), 4)]);
    assert_eq!(up.get("/shareOne").await.expect(200).text(), "one?");
}

#[tokio::test]
async fn dynamic_imports_rebuild_all_and_are_logged() {
    let up = up().await;
    let project = project!("guessers", {
        "index.js" => "
const load = (name) => require('./lib/' + name);
exports.guessOne = (req, res) => res.send(load('one').text);
exports.guessTwo = (req, res) => res.send('two');
",
        "lib/one.js" => "exports.text = 'one'",
    });
    up.deploy(&project).await.done();
    project.write("lib/one.js", "exports.text = 'ONE'");
    let second = up.deploy(&project).await;
    assert_eq!(second.changed(), [("guessOne".into(), 2), ("guessTwo".into(), 2)]);
    let log = second.log();
    assert!(log.contains("index.js:2: require('./lib/' + name)"), "{log}");
    assert_eq!(up.get("/guessOne").await.expect(200).text(), "ONE");
}

/// A project whose files are created in this order, with these modes and times.
fn written(folder: &Path, order: &[usize], mode: u32, days: u64) {
    let files = [
        (
            "index.js",
            "const { a } = require('./lib/a');\nexports.sameA = a;\nexports.sameB = (q, s) => s.end();",
        ),
        ("lib/a.js", "exports.a = (req, res) => res.send('a');"),
        ("page.html", "<p>hello</p>"),
    ];
    fs::create_dir_all(folder.join("lib")).unwrap();
    for &at in order {
        let (path, text) = files[at];
        let path = folder.join(path);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let time = SystemTime::now() - Duration::from_secs(days * 86_400);
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    }
}

/// Names and digests in the output of a build.
fn digests(built: &Value) -> BTreeMap<String, String> {
    let functions = built["functions"].as_array().unwrap().iter();
    let pairs = functions.map(|function| {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&function["name"]), text(&function["image"]["digest"]))
    });
    pairs.collect()
}

#[tokio::test]
async fn same_source_has_same_digests_everywhere() {
    up().await; // makes the runtime base
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (mine, theirs) = (place.path().join("mine/same"), place.path().join("theirs/same"));
    written(&mine, &[0, 1, 2], 0o644, 0);
    written(&theirs, &[2, 1, 0], 0o600, 900);
    for path in ["", "lib", "index.js", "lib/a.js", "page.html"] {
        chown(theirs.join(path), Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    }

    let build = async |source: &Path, shell: &str, zone: &str, data: &Path| {
        let mut command = Command::new("sh");
        command.args(["-c", shell, "sh"]).arg(binary());
        command.args(["build", "--json", "--data-dir"]).arg(data).arg(source);
        command.env("TZ", zone).env("HOME", data).stdin(Stdio::null()).current_dir("/");
        let outcome = cli::run(command).await.expect(0);
        let built = outcome.json();
        assert_eq!(built["project"], "same");
        digests(&built)
    };
    let first = build(&mine, "umask 022; exec \"$@\"", "UTC", &place.path().join("data")).await;
    assert_eq!(first.keys().collect::<Vec<_>>(), ["sameA", "sameB"]);

    let data = place.path().join("their-data");
    fs::create_dir(&data).unwrap();
    chown(&data, Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    let group = fs::metadata(SOCKET).unwrap().gid();
    let as_other_user = format!(
        "umask 077; exec setpriv --reuid {OTHER_USER} --regid {OTHER_USER} --groups {group} \"$@\""
    );
    let second = build(&theirs, &as_other_user, "Asia/Kathmandu", &data).await;
    assert_eq!(first, second);

    // Earlier builds, and leftovers of another version, do not matter.
    fs::write(mine.join("lib/a.js"), "exports.a = (req, res) => res.send('A');").unwrap();
    let other = build(&mine, "umask 022; exec \"$@\"", "UTC", &place.path().join("data")).await;
    assert_ne!(first["sameA"], other["sameA"]);
    fs::write(mine.join("lib/a.js"), "exports.a = (req, res) => res.send('a');").unwrap();
    let again = build(&mine, "umask 022; exec \"$@\"", "UTC", &place.path().join("data")).await;
    assert_eq!(first, again);
    let images: BTreeSet<_> = first.values().chain(other.values()).collect();
    let removal: Vec<_> =
        ["rmi", "-f"].into_iter().chain(images.into_iter().map(String::as_str)).collect();
    engine::docker(&removal).await.expect(0);
}

#[tokio::test]
async fn a_build_that_cannot_be_says_what_is_wrong() {
    let up = up().await;
    let project = project!("unbuildable", { "index.js" => "exports.a = (q, s) => s.end()" });
    let data = tempfile::tempdir().unwrap();
    let data = ["--data-dir", data.path().to_str().unwrap()];
    for (to, says) in [
        (&["--to", "nowhere"][..], "`engine`, `registry REF` or `oci:FILE`"),
        (
            &["--to", "oci:/no/such/folder/x.tar"],
            "the file `/no/such/folder/x.tar` cannot be created",
        ),
        (&["--to", "registry", "not a name"], "builder.registry"),
        (&["--only", "missing"], "the project has no function `missing`"),
    ] {
        let arguments: Vec<_> = ["build"].iter().chain(&data).chain(to).copied().collect();
        let outcome = up.cli_in(&project.path(), &arguments).await;
        let code = if to[0] == "--only" { 1 } else { 2 };
        let outcome = outcome.expect(code);
        assert!(outcome.stderr.contains(says), "{}", outcome.stderr);
    }
}
