//! Output for a person at a terminal, as opposed to a program in a pipe.

use crate::{
    listings::{function, version},
    support::{Fake, Reply, on_a_terminal},
};

fn one_to_delete() -> Fake {
    let versions = format!(r#"{{"data":[{}]}}"#, version(2, true));
    Fake::new(vec![
        ("GET /v1/functions/hello/versions", Reply::json(200, &versions)),
        ("DELETE /v1/functions/hello", Reply::json(204, "")),
    ])
}

fn deletes(fake: &Fake) -> usize {
    fake.seen().iter().filter(|seen| seen.line.starts_with("DELETE")).count()
}

#[test]
fn a_function_is_deleted_when_its_name_is_typed() {
    for (args, typed, code, deleted) in [
        (&["delete", "hello"][..], "hello\n", 0, 1),
        (&["delete", "hello"], "y\n", 1, 0),
        (&["delete", "hello"], "\n", 1, 0),
        (&["delete", "hello", "--yes"], "", 0, 1),
        (&["delete", "hello", "--json"], "", 0, 1),
    ] {
        let fake = one_to_delete();
        let ran = on_a_terminal(&fake, args, typed);
        assert_eq!((ran.code, deletes(&fake)), (code, deleted), "{args:?} {typed:?}: {ran:?}");
    }
    let fake = one_to_delete();
    let ran = on_a_terminal(&fake, &["delete", "hello"], "other\n");
    assert!(ran.stdout.contains("its 1 version will be removed"), "{ran:?}");
    assert!(ran.stdout.contains("nothing was changed"), "{ran:?}");
    // Scripts are not asked.
    let fake = one_to_delete();
    assert_eq!((fake.run(&["delete", "hello"]).code, deletes(&fake)), (0, 1));
}

#[test]
fn binary_data_is_not_written_to_a_terminal() {
    let info = format!(r#"{{"data":{}}}"#, function("hello", 1));
    let fake = Fake::new(vec![
        ("GET /v1/functions/hello", Reply::json(200, &info)),
        ("GET /hello", Reply::json(200, "\u{0}PNG\u{1b}[2J")),
    ]);
    let ran = on_a_terminal(&fake, &["invoke", "hello"], "");
    assert!(ran.code == 1 && ran.stdout.contains("`-o FILE`"), "{ran:?}");
    assert!(!ran.stdout.contains("PNG"), "{ran:?}");
    let ran = on_a_terminal(&fake, &["invoke", "hello", "-o", "-"], "");
    assert!(ran.code == 0 && ran.stdout.contains("PNG"), "{ran:?}");
    assert!(fake.run(&["invoke", "hello"]).stdout.contains("PNG"), "a pipe takes anything");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("picture");
    let ran = fake.run(&["invoke", "hello", "--output", file.to_str().unwrap()]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""));
    assert_eq!(std::fs::read(file).unwrap(), b"\x00PNG\x1b[2J");
}
