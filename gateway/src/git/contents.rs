//! What a commit may hold that a deployment cannot use: submodules, whose files are in other repositories, and pointers
//! of Git LFS, whose files are on another server. Deployed as they are, they would be empty folders and files of three
//! lines, and the function would fail far from the reason.

use super::command::{Git, GitError, Limits};
use epsilon_api::units::Bytes;
use std::{ffi::OsString, path::Path, time::Duration};

/// A line for each file of the tree, some 100 bytes long: room for a few hundred thousand files.
const LISTING: Bytes = Bytes::mib(64);
/// Candidates that are looked into. One that is found is enough; who has more of this size and no pointer among
/// them has none at all.
const CANDIDATES: usize = 4096;
/// A pointer has a version, an id and a size: 126 bytes and the digits of the size.
const POINTER: std::ops::RangeInclusive<u64> = 126..=147;
const POINTER_BEGINS: &[u8] = b"version https://git-lfs.github.com/spec/";
/// What is shown of a path.
const SHOWN: usize = 120;

/// Something that cannot be deployed; the first one by its path.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsupported {
    #[error("`{0}` is a submodule; submodules are not fetched")]
    Submodule(String),
    #[error("`{0}` is kept in Git LFS; only files in git itself are deployed")]
    Lfs(String),
}

impl Unsupported {
    /// What the developer can do.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Submodule(_) => {
                "commit those files themselves, or make them a package that is installed; \
                 `epsilon deploy` sends a folder as it is, submodules included"
            }
            Self::Lfs(_) => {
                "`git lfs migrate export` brings the files back into git; \
                 `epsilon deploy` sends a folder as it is, such files included"
            }
        }
    }
}

/// Looks through the tree of a commit. `env` is for objects that lie elsewhere.
///
/// # Errors
/// When git cannot be asked.
pub(crate) async fn check(
    git: &Git,
    repository: &Path,
    commit: &str,
    env: &[(OsString, OsString)],
    time: Duration,
) -> Result<Result<(), Unsupported>, GitError> {
    let run = |args: &[&str]| {
        let run = git.run(args).within(repository);
        env.iter().fold(run, |run, (name, value)| run.env(name, value))
    };
    let listing = run(&["ls-tree", "-r", "-l", "-z", "--full-tree", commit]);
    let listing = listing.output(Limits { time, output: LISTING }).await?;
    let mut candidates = Vec::new();
    for entry in listing.split(|b| *b == 0).filter_map(|line| std::str::from_utf8(line).ok()) {
        // `MODE TYPE ID SIZE<TAB>PATH`; SIZE is `-` for what is no file.
        let Some((facts, path)) = entry.split_once('\t') else { continue };
        let mut facts = facts.split_ascii_whitespace();
        let (_mode, kind, id) = (facts.next(), facts.next(), facts.next());
        if kind == Some("commit") {
            return Ok(Err(Unsupported::Submodule(shown(path))));
        }
        let size = facts.next().and_then(|size| size.parse().ok());
        if let (Some(id), Some(size)) = (id, size)
            && POINTER.contains(&size)
            && candidates.len() < CANDIDATES
        {
            candidates.push((id, path));
        }
    }
    if candidates.is_empty() {
        return Ok(Ok(()));
    }
    let ids: String = candidates.iter().map(|(id, _)| format!("{id}\n")).collect();
    // Beside each file's bytes there is a line of an id, a word and a number.
    let most = candidates.len() as u64 * (*POINTER.end() + 100);
    let files = run(&["cat-file", "--batch"]).input(ids);
    let files = files.output(Limits { time, output: Bytes(most + 1) }).await?;
    Ok(match first_pointer(&files) {
        Some(index) => {
            Err(Unsupported::Lfs(candidates.get(index).map_or_else(String::new, |c| shown(c.1))))
        }
        None => Ok(()),
    })
}

/// Which of the objects that `git cat-file --batch` printed is a pointer: `ID blob SIZE\n`, its bytes, `\n`.
fn first_pointer(mut printed: &[u8]) -> Option<usize> {
    for index in 0.. {
        let end = printed.iter().position(|b| *b == b'\n')?;
        let (head, rest) = printed.split_at_checked(end + 1)?;
        let size = std::str::from_utf8(head).ok()?.split_ascii_whitespace().nth(2)?.parse().ok()?;
        let (file, rest) = rest.split_at_checked(size)?;
        if file.starts_with(POINTER_BEGINS) {
            return Some(index);
        }
        printed = rest.get(1..)?;
    }
    None
}

fn shown(path: &str) -> String {
    path.chars().filter(|c| !c.is_control()).take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_secs(60);
    const LIMITS: Limits = Limits { time: TIME, output: Bytes::mib(1) };
    const EMPTY_COMMIT: &str = "1111111111111111111111111111111111111111";

    fn pointer(size: &str) -> String {
        let id = "a".repeat(64);
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{id}\nsize {size}\n")
    }

    /// What is said of a tree with these files; a submodule where there is no text.
    async fn said(files: &[(&str, Option<&str>)]) -> Result<(), Unsupported> {
        let (git, dir) = (Git::default(), tempfile::tempdir().unwrap());
        let run = async |args: &[&str], input: &str| {
            let run = git.run(args).within(dir.path()).input(input);
            let run = run.setting("user.name=e").setting("user.email=e@localhost");
            String::from_utf8(run.output(LIMITS).await.unwrap()).unwrap().trim().to_owned()
        };
        run(&["init", "--quiet", "--bare"], "").await;
        let mut tree = String::new();
        for (path, text) in files {
            tree += &match text {
                None => format!("160000 commit {EMPTY_COMMIT}\t{path}\n"),
                Some(text) => {
                    let id = run(&["hash-object", "-w", "--stdin"], text).await;
                    format!("100644 blob {id}\t{path}\n")
                }
            };
        }
        let tree = run(&["mktree", "--missing"], &tree).await;
        let commit = run(&["commit-tree", "-m", "first", &tree], "").await;
        check(&git, dir.path(), &commit, &[], TIME).await.unwrap()
    }

    #[tokio::test]
    async fn plain_files_are_fine_also_of_a_pointers_size() {
        let (near, prose) = ("x".repeat(130), format!("see {}", pointer("1")));
        let files = [("a.js", Some("exports.a = 1")), ("b", Some(&*near)), ("c", Some(&*prose))];
        assert_eq!(said(&files).await, Ok(()));
        assert_eq!(said(&[]).await, Ok(()));
    }

    #[tokio::test]
    async fn a_submodule_is_named() {
        let files = [("index.js", Some("")), ("vendor", None)];
        assert_eq!(said(&files).await, Err(Unsupported::Submodule("vendor".into())));
    }

    #[tokio::test]
    async fn a_pointer_is_named_whatever_the_size_of_its_file() {
        for size in ["1", "133742", "18446744073709551615"] {
            let (near, pointer) = ("x".repeat(130), pointer(size));
            let files = [("a.bin", Some(&*near)), ("model.bin", Some(&*pointer))];
            assert_eq!(said(&files).await, Err(Unsupported::Lfs("model.bin".into())), "{size}");
        }
    }
}
