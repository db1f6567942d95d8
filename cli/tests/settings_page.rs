//! `docs/config.md` is generated from each part's `config.default.yaml`, where every setting is
//! declared and explained once. Rewrite it with `EPSILON_WRITE_DOCS=1 cargo test -p epsilon-cli
//! --test settings_page`.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

/// The files, and what the section of each is about.
const FILES: [(&str, &str); 3] = [
    ("gateway", "The two listeners, the fleet and its functions."),
    ("vm-agent", "Instances and their engine."),
    ("builder", "Source to image."),
];

const HEAD: &str = "# Settings\n\n\
    Written from the `config.default.yaml` of each part by a test; do not edit. A settings file is YAML with the sections below\n\
    (`epsilon up --config FILE`); `EPSILON_<SECTION>_<KEY>` in the environment wins over the file, a flag over both.\n\
    An area, such as `gateway.git`, is one variable with all of it: `EPSILON_GATEWAY_GIT='{ branch: live }'`.\n\
    Unknown keys are an error, and so are names of earlier releases: the error says what is fixed now, and why.\n\
    Durations are written `500ms`, `10s`, `5m`; sizes `64KiB`, `256MiB`, `1.5GiB`.\n";

fn page() -> String {
    let mut page = HEAD.to_owned();
    for (part, about) in FILES {
        let (tables, rows) = tables(&read(part));
        for (section, comment) in tables {
            let about = if section.contains('.') { &comment } else { about };
            let rows = rows.iter().filter(|row| row.section == section);
            let _ = write!(
                page,
                "\n## `{section}`\n\n{about}\n\n| setting | default | meaning |\n|---|---|---|\n"
            );
            for Row { key, default, meaning, .. } in rows {
                let meaning = meaning.replace('|', "\\|");
                let _ = writeln!(page, "| `{section}.{key}` | {default} | {meaning} |");
            }
        }
    }
    page
}

fn read(part: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(part);
    fs::read_to_string(path.join("config.default.yaml")).unwrap()
}

struct Row {
    section: String,
    key: String,
    default: String,
    meaning: String,
}

/// The mappings and their keys, with the comments above them.
fn tables(text: &str) -> (Vec<(String, String)>, Vec<Row>) {
    let (mut tables, mut rows) = (Vec::new(), Vec::new());
    let mut path: Vec<String> = Vec::new();
    let mut comment = String::new();
    let lines: Vec<&str> = text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let depth = (line.len() - line.trim_start().len()) / 2;
        let line = line.trim();
        if let Some(text) = line.strip_prefix('#') {
            comment.push_str(text);
            continue;
        }
        let Some((key, value)) = line.split_once(':') else {
            comment.clear();
            continue;
        };
        let comment = std::mem::take(&mut comment).trim().to_owned();
        path.truncate(depth);
        let opens = lines[at + 1..]
            .iter()
            .find(|line| !line.trim().is_empty() && !line.trim().starts_with('#'))
            .is_some_and(|next| (next.len() - next.trim_start().len()) / 2 > depth);
        let section = path.join(".");
        path.push(key.to_owned());
        if opens {
            // A mapping of names has no keys of its own.
            let about = if comment.is_empty() { about(&tables, &section) } else { comment };
            tables.push((path.join("."), about));
        } else {
            assert!(!comment.is_empty(), "`{section}.{key}` is not explained");
            let default = match value.trim() {
                "" => "–".to_owned(),
                "[]" | "''" => "none".to_owned(),
                value => format!("`{value}`"),
            };
            rows.push(Row { section, key: key.to_owned(), default, meaning: comment });
        }
    }
    tables.retain(|(section, _)| rows.iter().any(|row| row.section == *section));
    (tables, rows)
}

fn about(tables: &[(String, String)], section: &str) -> String {
    let above = tables.iter().find(|(name, _)| name == section);
    above.map(|(_, about)| about.clone()).unwrap_or_default()
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

/// A key that is documented twice, or in two places, would be read once.
#[test]
fn each_setting_is_explained_once() {
    for (part, _) in FILES {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for row in tables(&read(part)).1 {
            *seen.entry(format!("{}.{}", row.section, row.key)).or_default() += 1;
        }
        assert!(seen.len() > 30 && seen.values().all(|count| *count == 1), "{seen:?}");
    }
}
