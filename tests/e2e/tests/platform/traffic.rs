//! Traffic splits on a real platform: shares, sticky callers, a failing version, promotion under
//! load, URLs of single versions, a restart.

use crate::up;
use epsilon_e2e::{
    http::Call,
    load::Load,
    project,
    project::Project,
    up::Epsilon,
    wait::{SOON, until},
};
use std::collections::BTreeMap;

/// Answers with its number; `/fail` fails from version 2 on.
fn source(name: &str, n: u32) -> String {
    format!(
        "exports.{name} = {{ config: {{ memory: '128MiB', concurrency: 20 }}, func: (req, res) =>
           {n} > 1 && req.path === '/fail' ? res.status(500).send('broken') : res.send('{n}') }}"
    )
}

/// Two versions, the second one active.
async fn two_versions(up: &Epsilon, name: &str) -> Project {
    let project = project!(name, { "index.js" => source(name, 1) });
    up.deploy(&project).await;
    project.write("index.js", source(name, 2));
    up.deploy(&project).await;
    project
}

#[tokio::test]
async fn shares_hold_are_shown_and_promoted() {
    let up = up().await;
    two_versions(up, "shares").await;
    let listed = up.cli(&["traffic", "shares", "1=80", "2=20"]).await.expect(0).stdout;
    assert!(listed.contains("80%") && listed.contains("stable"), "{listed}");
    let mut counts = BTreeMap::new();
    for _ in 0..200 {
        *counts.entry(up.get("/shares").await.expect(200).text()).or_insert(0) += 1;
    }
    let new = counts["2"];
    assert!((36..=44).contains(&new), "of any hundred in a row a fifth: {counts:?}");
    for (path, want) in [("/shares@1", "1"), ("/shares@2", "2")] {
        assert_eq!(up.get(path).await.expect(200).text(), want);
    }
    let listed = up.cli(&["functions"]).await.expect(0).stdout;
    assert!(listed.contains("1=80 2=20"), "{listed}");

    up.cli(&["promote", "shares"]).await.expect(0);
    for _ in 0..20 {
        assert_eq!(up.get("/shares").await.expect(200).text(), "2");
    }
    until("the other version's instances are gone", SOON, async || {
        let vms = up.admin("/v1/vms").await;
        let instances = vms[0]["instances"].as_array().unwrap().clone();
        let old: Vec<_> = instances
            .into_iter()
            .filter(|one| one["function"] == "shares" && one["version"] == 1)
            .collect();
        if old.is_empty() { Ok(()) } else { Err(old) }
    })
    .await;
    assert_eq!(up.get("/shares@1").await.expect(200).text(), "1", "its address stays");
    assert_eq!(up.cli(&["invoke", "shares@1"]).await.expect(0).stdout.trim(), "1");
    up.get("/shares@3").await.expect_error(404, "VERSION_NOT_FOUND");
}

#[tokio::test]
async fn callers_stay_on_their_version() {
    let up = up().await;
    two_versions(up, "stays").await;
    let user = async |n: u32| {
        let call = Call::get("/stays").header("x-user", &format!("user-{n}"));
        call.send(up.public()).await.expect(200).text()
    };
    let all = async || {
        let mut all = Vec::new();
        for n in 0..40 {
            all.push(user(n).await);
        }
        all
    };
    up.cli(&["traffic", "stays", "1=50", "2=50", "--sticky", "header:X-User"]).await.expect(0);
    let first = all().await;
    assert!(first.contains(&"1".into()) && first.contains(&"2".into()), "{first:?}");
    assert_eq!(all().await, first);
    up.cli(&["traffic", "stays", "1=20", "2=80", "--sticky", "header:X-User"]).await.expect(0);
    for (before, after) in first.iter().zip(all().await) {
        assert!(before == "1" || after == "2", "who had the new one keeps it while it grows");
    }

    up.cli(&["traffic", "stays", "1=50", "2=50", "--sticky", "cookie"]).await.expect(0);
    let answer = up.get("/stays").await.expect(200);
    let cookie = answer.header("set-cookie").to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    for _ in 0..10 {
        let again = Call::get("/stays").header("cookie", pair).send(up.public()).await.expect(200);
        assert_eq!(again.text(), answer.text());
    }
}

#[tokio::test]
async fn failing_version_is_aborted_without_losing_other_calls() {
    let up = up().await;
    two_versions(up, "failing").await;
    let typed = ["traffic", "failing", "1=70", "2=30", "--min-calls", "10", "--abort-above", "10%"];
    up.cli(&typed).await.expect(0);
    let load = Load::start(up.public(), "/failing/fail", 4);
    until("the split has ended by itself", SOON, async || {
        let traffic = up.admin("/v1/functions/failing/traffic").await;
        if traffic["aborted"]["version"] == 2 { Ok(()) } else { Err(traffic) }
    })
    .await;
    let broken_by_then = load.tally().of(500);
    let answered = load.tally().answers();
    until("calls go on", SOON, async || {
        if load.tally().answers() > answered + 50 { Ok(()) } else { Err(load.tally()) }
    })
    .await;
    let tally = load.stop().await;
    // A call may have been in flight when the split ended.
    assert!(tally.of(500) <= broken_by_then + 4, "{tally:?}");
    assert_eq!(tally.of(200) + tally.of(500), tally.answers(), "{tally:?}");
    assert!(tally.broken.is_empty() && tally.refused == 0, "{tally:?}");
    let listed = up.cli(&["functions"]).await.expect(0).stdout;
    assert!(listed.contains("calls of version 2 failed"), "{listed}");
    assert!(up.log().contains("Split ended"), "the log says so");
}

#[tokio::test]
async fn splitting_and_promoting_under_load_loses_no_call() {
    let up = up().await;
    two_versions(up, "moving").await;
    let load = Load::start(up.public(), "/moving", 4);
    for _ in 0..3 {
        for typed in [
            &["traffic", "moving", "1=90", "2=10"][..],
            &["traffic", "moving", "1=50", "2=50"],
            &["promote", "moving", "2"],
            &["traffic", "moving", "1=30", "2=70"],
            &["rollback", "moving", "1"],
        ] {
            let before = load.tally().answers();
            up.cli(typed).await.expect(0);
            until("calls went on", SOON, async || {
                if load.tally().answers() > before + 20 { Ok(()) } else { Err(load.tally()) }
            })
            .await;
        }
    }
    let tally = load.stop().await;
    assert_eq!(tally.of(200), tally.answers(), "{tally:?}");
    assert!(tally.broken.is_empty() && tally.refused == 0, "{tally:?}");
}

#[tokio::test]
async fn a_split_survives_a_restart_and_a_kill() {
    let mut up = Epsilon::start().await;
    two_versions(&up, "again").await;
    up.cli(&["traffic", "again", "1=50", "2=50", "--sticky", "header:x-user"]).await.expect(0);
    let users = async |up: &Epsilon| {
        let mut all = String::new();
        for n in 0..20 {
            let call = Call::get("/again").header("x-user", &format!("user-{n}"));
            all += &call.send(up.public()).await.expect(200).text();
        }
        all
    };
    let before = users(&up).await;
    assert!(before.contains('1') && before.contains('2'), "{before}");
    up.terminate().await;
    up.start_again().await;
    assert_eq!(users(&up).await, before);
    up.kill().await;
    up.start_again().await;
    assert_eq!(users(&up).await, before);
    let shown = up.admin("/v1/functions/again/traffic").await;
    assert_eq!(shown["shares"][0]["percent"], 50, "{shown}");
}
