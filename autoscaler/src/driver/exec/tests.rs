//! Real commands in a real shell.

use super::*;
use epsilon_api::chain::Chain;
use std::path::Path;

fn ids(names: &[&str]) -> Vec<VmId> {
    names.iter().map(|name| VmId::parse(name).unwrap()).collect()
}

/// A driver whose command is this script, run in `folder`.
fn shell(folder: &Path, script: &str) -> Exec {
    let script = format!("cd '{}'; {script}", folder.display());
    let command = ["sh", "-c", &script, "scale"].map(str::to_owned).to_vec();
    Exec::new(command, Duration::from_secs(10))
}

#[tokio::test]
async fn the_command_learns_the_count_and_who_goes() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"echo "$1 $EPSILON_WANTED ${EPSILON_TERMINATE:-none}" >> calls"#;
    let group = shell(folder.path(), script);
    let seen = ids(&["vm-1", "vm-2"]);
    assert_eq!(group.describe(&seen).await.unwrap().desired, 2);
    group.set_desired(5).await.unwrap();
    assert_eq!(group.describe(&seen).await.unwrap().desired, 5);
    group.terminate(&seen[1]).await.unwrap();
    assert_eq!(group.describe(&seen).await.unwrap().desired, 4);
    let calls = std::fs::read_to_string(folder.path().join("calls")).unwrap();
    assert_eq!(calls, "5 5 none\n4 4 vm-2\n");
}

#[tokio::test]
async fn a_failed_command_reports_its_error_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let group = shell(folder.path(), "echo fine; echo 'quota exceeded' >&2; exit 3");
    let seen = ids(&["vm-1"]);
    group.describe(&seen).await.unwrap();
    let err = group.set_desired(9).await.unwrap_err();
    let text = Chain(&err).to_string();
    assert!(text.contains("exit status: 3") && text.contains("quota exceeded"), "{text}");
    assert_eq!(group.describe(&seen).await.unwrap().desired, 1);
}

#[tokio::test]
async fn a_command_that_hangs_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let command = ["sleep", "600"].map(str::to_owned).to_vec();
    let group = Exec::new(command, Duration::from_millis(50));
    let err = group.set_desired(1).await.unwrap_err();
    assert!(matches!(err, GroupError::NoAnswer(_)), "{err:?}");
    drop(folder);
}

#[tokio::test]
async fn a_missing_command_is_reported() {
    let group = Exec::new(vec!["/nonexistent/scale".into()], Duration::from_secs(1));
    let err = group.set_desired(1).await.unwrap_err();
    assert!(matches!(err, GroupError::NoAnswer(_)), "{err:?}");
}

#[tokio::test]
async fn large_output_does_not_block_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let group = shell(folder.path(), "yes | head -c 3000000; yes | head -c 3000000 >&2");
    group.set_desired(2).await.unwrap();
}

#[tokio::test]
async fn the_ordered_count_expires_then_reports_count() {
    let group = Exec::new(vec!["true".into()], Duration::from_secs(10));
    let seen = ids(&["vm-1"]);
    group.set_desired(4).await.unwrap();
    assert_eq!(group.describe(&seen).await.unwrap().desired, 4);
    tokio::time::pause(); // only now: a paused clock does not wait for a command
    tokio::time::advance(ORDER_TTL).await;
    assert_eq!(group.describe(&seen).await.unwrap().desired, 1);
}

#[tokio::test]
async fn a_leaving_vm_stays_marked_until_it_disappears() {
    let group = Exec::new(vec!["true".into()], Duration::from_secs(10));
    let seen = ids(&["vm-1", "vm-2"]);
    group.protect(&seen[..1], false).await.unwrap();
    let marks = |group: Group| group.instances.iter().map(|vm| vm.protected).collect::<Vec<_>>();
    assert_eq!(marks(group.describe(&seen).await.unwrap()), [false, true]);
    group.describe(&seen[1..]).await.unwrap();
    assert_eq!(marks(group.describe(&seen).await.unwrap()), [true, true]);
}
