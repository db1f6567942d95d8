//! The README's own commands: every fenced block marked `sh run` is executed, in order, in one new
//! folder, on a running platform. A block that fails fails this test.

use epsilon_e2e::{
    cli::run,
    up::{Epsilon, binary},
};
use std::{path::Path, process::Stdio};
use tempfile::TempDir;
use tokio::process::Command;

/// The blocks with this info string, each with the number of its first line.
fn blocks(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut inside = false;
    for (number, line) in text.lines().enumerate() {
        match line.trim_end() {
            "```sh run" => {
                inside = true;
                found.push((number + 2, String::new()));
            }
            "```" => inside = false,
            line if inside => {
                let (_, block) = found.last_mut().unwrap();
                block.push_str(line);
                block.push('\n');
            }
            _ => {}
        }
    }
    found
}

#[tokio::test]
async fn every_command_of_the_readme_works_in_its_order() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let blocks = blocks(&std::fs::read_to_string(readme).unwrap());
    assert!(!blocks.is_empty(), "the README has no block marked `sh run`");
    let up = Epsilon::start().await;
    let place = TempDir::new().unwrap();
    let path = format!(
        "{}:{}",
        binary().parent().unwrap().display(),
        std::env::var("PATH").unwrap_or_default()
    );
    for (line, block) in blocks {
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", &block])
            .current_dir(place.path())
            .env("PATH", &path)
            .env("EPSILON_GATEWAY", format!("http://{}", up.control()))
            .env("EPSILON_KEY", up.key())
            .env("EPSILON_URL", format!("http://{}", up.public()))
            .stdin(Stdio::null());
        let outcome = run(command).await;
        assert_eq!(outcome.code, 0, "README.md:{line}:\n{block}\n{outcome}");
    }
}

#[test]
fn blocks_are_found_by_their_mark() {
    let text = "a\n```sh\nno\n```\n```sh run\none\ntwo\n```\nb\n```sh run\nthree\n```\n";
    assert_eq!(blocks(text), [(6, "one\ntwo\n".to_owned()), (11, "three\n".to_owned())]);
}
