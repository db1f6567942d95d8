//! `epsilon init`.

use crate::support::epsilon;
use insta::assert_snapshot;

#[test]
fn a_node_project_is_written_once() {
    let dir = tempfile::tempdir().unwrap();
    assert_snapshot!(epsilon(&["init", "shop"], &[], b"", dir.path()).golden());
    let code = std::fs::read_to_string(dir.path().join("shop/index.js")).unwrap();
    assert!(code.contains("exports.hello"), "{code}");
    std::fs::write(dir.path().join("shop/index.js"), "mine").unwrap();
    assert_snapshot!("init_twice", epsilon(&["init", "shop"], &[], b"", dir.path()).golden());
    assert_eq!(std::fs::read(dir.path().join("shop/index.js")).unwrap(), b"mine");
}

#[test]
fn an_existing_project_can_be_deployed_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("app")).unwrap();
    std::fs::write(dir.path().join("app/package.json"), "{}").unwrap();
    let ran = epsilon(&["init", "app"], &[], b"", dir.path());
    assert!(ran.stderr.contains("`epsilon deploy app` takes it as it is"), "{}", ran.stderr);
    assert_eq!(std::fs::read(dir.path().join("app/package.json")).unwrap(), b"{}");
}

#[test]
fn a_container_project_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["init", "--runtime", "container"];
    assert_snapshot!(epsilon(&args, &[], b"", dir.path()).golden());
}

#[test]
fn python_is_not_supported_yet() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["init", "--runtime", "python"];
    assert_snapshot!(epsilon(&args, &[], b"", dir.path()).golden());
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
}
