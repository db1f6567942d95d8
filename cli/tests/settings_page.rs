//! `docs/config.md` is generated from the doc comments of each part's `Settings`, where every
//! setting is declared once. Rewrite it with `EPSILON_WRITE_DOCS=1 cargo test -p epsilon-cli --test
//! settings_page`.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::{fmt::Write, fs, path::Path};

/// Section of the settings file, its subject, and where it is declared.
const SECTIONS: [(&str, &str, &str); 9] = [
    ("gateway", "the two listeners and the relay", "gateway/src/config.rs"),
    (
        "gateway.autoscale",
        "how many VMs, and which driver creates them",
        "gateway/src/autoscale/config.rs",
    ),
    ("gateway.traffic", "automatic end of a traffic split", "gateway/src/traffic/config.rs"),
    ("gateway.git", "`git push` as a deployment", "gateway/src/source/git/config.rs"),
    ("gateway.hooks", "limits of webhooks", "gateway/src/source/github/config.rs"),
    ("gateway.github.<project>", "one project's webhook", "gateway/src/source/github/project.rs"),
    (
        "gateway.ceilings",
        "functions whose images were built elsewhere",
        "gateway/src/deploy/prebuilt/ceilings.rs",
    ),
    ("vm_agent", "instances and their engine", "vm-agent/src/config.rs"),
    ("builder", "source to image", "builder/src/config/settings.rs"),
];

/// Settings that are not a part's own: the program that composes the parts reads them.
const COMPOSED: &str = "| `gateway.drain_grace` | The longest that running calls may go on after the first signal. Default `30s`. |\n\
    | `gateway.store` | Of `epsilon-gateway`: where state is kept. `sqlite` is a file in the data folder; `postgres://…` is shared by several \
    gateways. Default `sqlite`. |\n";

fn page() -> String {
    let mut page = String::from(
        "# Settings\n\n\
         Written from the `config.rs` of each part by a test; do not edit. A settings file is YAML with the sections below\n\
         (`epsilon up --config FILE`); `EPSILON_<SECTION>_<KEY>` in the environment wins over the file, a flag over both.\n\
         Unknown keys are an error. Durations are written `500ms`, `10s`, `5m`; sizes `64KiB`, `256MiB`, `1.5GiB`.\n",
    );
    for (section, what, file) in SECTIONS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
        let source = fs::read_to_string(&path).unwrap();
        let _ = write!(page, "\n## `{section}`: {what}\n\n| setting | meaning |\n|---|---|\n");
        if section == "gateway" {
            page.push_str(COMPOSED);
        }
        let rows = rows(&source);
        assert!(rows.len() > 1, "{file} declares no `pub struct Settings` that this test can read");
        for (name, doc) in rows {
            assert!(!doc.is_empty(), "`{section}.{name}` has no doc comment");
            let _ = writeln!(page, "| `{section}.{name}` | {} |", doc.replace('|', "\\|"));
        }
    }
    page
}

/// The fields of `pub struct Settings` with their doc comments.
fn rows(source: &str) -> Vec<(String, String)> {
    let (mut rows, mut doc) = (Vec::new(), String::new());
    let body = source.lines().skip_while(|line| !line.starts_with("pub struct Settings")).skip(1);
    for line in body.take_while(|line| *line != "}").map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            doc.push_str(text);
        } else if let Some((name, _)) = line.strip_prefix("pub ").and_then(|f| f.split_once(':')) {
            rows.push((name.to_owned(), std::mem::take(&mut doc).trim().to_owned()));
        }
    }
    rows
}

#[test]
fn the_settings_page_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config.md");
    if std::env::var_os("EPSILON_WRITE_DOCS").is_some() {
        fs::write(&path, page()).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        written,
        page(),
        "rewrite it: EPSILON_WRITE_DOCS=1 cargo test -p epsilon-cli --test settings_page"
    );
}
