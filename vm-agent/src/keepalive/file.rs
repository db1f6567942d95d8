//! `DATA/vm/keep.json`: the histories of functions, for the next run of the agent. Losing it costs
//! some cold starts and nothing else, so an unreadable file is ignored with a line in the log. A
//! pause during which the agent restarted is not counted.

use super::{histogram::Histogram, history::StoredHistory};
use epsilon_api::{chain::Chain, ids::FunctionName};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    path::Path,
    time::Duration,
};

/// Version of the format.
const FORMAT: u32 = 1;
/// Size limit in bytes: a larger file was not written by an agent.
const LARGEST: u64 = 64 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct HistoryFile {
    format: u32,
    functions: Vec<FunctionRecord>,
}

#[derive(Debug, Serialize, Deserialize)]
struct FunctionRecord {
    function: FunctionName,
    /// Index of each bin, and its weight.
    bins: Vec<(usize, f32)>,
    beyond: f32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start_us: Option<u64>,
}

/// Why an existing file cannot be read.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    #[error("it is no list of functions")]
    Json(#[from] serde_json::Error),
    #[error("it has another format ({0})")]
    Format(u32),
    #[error("it has {0} bytes")]
    Large(u64),
    #[error("its entry of `{0}` is invalid")]
    Invalid(FunctionName),
}

/// Reads the histories of an earlier run; empty when there are none.
pub(crate) fn read(path: &Path) -> Vec<(FunctionName, StoredHistory)> {
    match try_read(path) {
        Ok(functions) => functions,
        Err(Unreadable::Io(err)) if err.kind() == ErrorKind::NotFound => Vec::new(),
        Err(err) => {
            tracing::warn!(path = %path.display(), error = %Chain(&err), "Stored pauses of functions cannot be read; measuring them again.");
            Vec::new()
        }
    }
}

fn try_read(path: &Path) -> Result<Vec<(FunctionName, StoredHistory)>, Unreadable> {
    let bytes = fs::metadata(path)?.len();
    if bytes > LARGEST {
        return Err(Unreadable::Large(bytes));
    }
    let file: HistoryFile = serde_json::from_slice(&fs::read(path)?)?;
    if file.format != FORMAT {
        return Err(Unreadable::Format(file.format));
    }
    let stored = |FunctionRecord { function, bins, beyond, start_us }| match Histogram::from_parts(
        &bins, beyond,
    ) {
        Some(pauses) => {
            Ok((function, StoredHistory { pauses, start: start_us.map(Duration::from_micros) }))
        }
        None => Err(Unreadable::Invalid(function)),
    };
    file.functions.into_iter().map(stored).collect()
}

/// The content of the file.
pub(crate) fn text(
    functions: Vec<(FunctionName, StoredHistory)>,
) -> Result<String, serde_json::Error> {
    let file = |(function, StoredHistory { pauses, start }): (FunctionName, StoredHistory)| {
        let (bins, beyond) = pauses.parts();
        let start_us = start.map(|start| u64::try_from(start.as_micros()).unwrap_or(u64::MAX));
        FunctionRecord { function, bins, beyond, start_us }
    };
    let functions = functions.into_iter().map(file).collect();
    serde_json::to_string(&HistoryFile { format: FORMAT, functions })
}

/// Writes a file atomically and durably: after a crash it is there as a whole, or not at all.
pub(crate) fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension("new");
    let mut file = File::create(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> StoredHistory {
        let mut pauses = Histogram::default();
        [5, 700, 700, 99_999].into_iter().for_each(|pause| pauses.add(Duration::from_secs(pause)));
        StoredHistory { pauses, start: Some(Duration::from_micros(4321)) }
    }

    #[test]
    fn written_file_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keep.json");
        let name = FunctionName::parse("hello").unwrap();
        let text = text(vec![(name.clone(), stored())]).unwrap();
        // The format of existing files: a change of it needs another `FORMAT`.
        let golden = r#"{"format":1,"functions":[{"function":"hello","bins":[[0,1.0],[21,2.0]],"beyond":1.0,"start_us":4321}]}"#;
        assert_eq!(text, golden);
        fs::write(&path, text).unwrap();
        let read = read(&path);
        assert_eq!(read[0].0, name);
        assert_eq!(read[0].1.pauses.parts(), stored().pauses.parts());
        assert_eq!(read[0].1.start, stored().start);
    }

    #[test]
    fn invalid_file_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keep.json");
        assert!(matches!(try_read(&path), Err(Unreadable::Io(_))));
        for (text, why) in [
            ("", "no list"),
            ("{\"format\":1,\"func", "no list"),
            ("{\"format\":2,\"functions\":[]}", "another format (2)"),
            (
                r#"{"format":1,"functions":[{"function":"a","bins":[[9999,1.0]],"beyond":0}]}"#,
                "of `a` is invalid",
            ),
            (r#"{"format":1,"functions":[{"function":"A b","bins":[],"beyond":0}]}"#, "no list"),
        ] {
            fs::write(&path, text).unwrap();
            let err = try_read(&path).unwrap_err().to_string();
            assert!(err.contains(why), "{text}: {err}");
            assert_eq!(read(&path), []);
        }
    }
}
