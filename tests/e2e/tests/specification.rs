//! Each test that `docs/specification.md` names exists, so that no promise outlives its test.

use std::{fs, path::Path};

/// All test sources of this crate, as one text.
fn sources(folder: &Path) -> String {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.path() {
            path if path.is_dir() => sources(&path),
            path => fs::read_to_string(&path).unwrap_or_default(),
        })
        .collect()
}

#[test]
fn every_test_that_the_specification_names_exists() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(here.join("../../docs/specification.md")).unwrap();
    let sources = sources(&here.join("tests"));
    let quoted = page.split('`').skip(1).step_by(2);
    let names: Vec<_> = quoted
        .filter_map(|text| text.split_once("::"))
        .filter(|(_, name)| !name.is_empty() && !name.contains(['*', '…']))
        .collect();
    assert!(names.len() > 60, "found only {names:?}");
    for (module, name) in names {
        assert!(sources.contains(&format!("fn {name}(")), "`{module}::{name}` does not exist");
    }
}
