//! Destination of an answer's body: standard output, or a file. Binary data is not written to a
//! terminal, which would interpret some of it.

use crate::{failure::Failure, output};
use std::{
    fs::File,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

/// Destination of bytes, written as they arrive.
#[derive(Debug)]
pub(super) enum BodyOutput {
    /// Standard output; `true`: a terminal, for text only.
    Output(bool),
    /// A file.
    File(File, PathBuf),
}

impl BodyOutput {
    /// The file of `--output`, else standard output.
    pub(super) fn open(file: Option<&Path>) -> Result<Self, Failure> {
        match file {
            None => Ok(Self::Output(io::stdout().is_terminal())),
            Some(path) if path.as_os_str() == "-" => Ok(Self::Output(false)),
            Some(path) => match File::create(path) {
                Ok(file) => Ok(Self::File(file, path.to_owned())),
                Err(err) => Err(unwritable(path, &err)),
            },
        }
    }

    /// Writes the next bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            // Text has no NUL; curl uses the same test.
            Self::Output(true) if bytes.contains(&0) => Err(Failure::new(
                "BINARY_OUTPUT",
                "the answer is binary, and would go to a terminal",
            )
            .hint("write it to a file with `-o FILE`, or to the terminal anyway with `-o -`")),
            Self::Output(_) => output::bytes(bytes),
            Self::File(file, path) => file.write_all(bytes).map_err(|err| unwritable(path, &err)),
        }
    }

    /// Ends the output.
    pub(super) fn end(&self) -> Result<(), Failure> {
        match self {
            Self::Output(_) => output::end_of_body(),
            Self::File(..) => Ok(()),
        }
    }
}

fn unwritable(path: &Path, err: &io::Error) -> Failure {
    Failure::new("OUTPUT", format!("`{}` cannot be written", path.display())).with_cause(err)
}
