//! Contents of a commit that a deployment cannot use: submodules, whose files are in other
//! repositories, and pointers of Git LFS, whose files are on another server. If deployed, they
//! would be empty folders and three-line files, and the function would fail with an unrelated
//! error.

use super::command::{Git, GitError, Limits};
use epsilon_api::units::Bytes;
use std::{ffi::OsString, path::Path, time::Duration};

/// Longest listing of a tree, some 100 bytes per file: room for a few hundred thousand files.
const MAX_LISTING: Bytes = Bytes::mib(64);
/// Most files that are checked. One pointer is enough to refuse the commit; among more files than
/// this of the size of a pointer, one is found early or there is none.
const MAX_CANDIDATES: usize = 4096;
/// Size of a pointer: version, id and size take 126 bytes plus the digits of the size.
const POINTER_SIZE: std::ops::RangeInclusive<u64> = 126..=147;
const POINTER_PREFIX: &[u8] = b"version https://git-lfs.github.com/spec/";
/// Longest part of a path that is shown.
const MAX_SHOWN: usize = 120;

/// The first unsupported entry, by its path.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsupported {
    #[error("`{0}` is a submodule; submodules are not fetched")]
    Submodule(String),
    #[error("`{0}` is stored in Git LFS; only files in git itself are deployed")]
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

/// Searches the tree of a commit. `env` is for objects stored elsewhere.
///
/// # Errors
/// When git fails.
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
    let listing = listing.output(Limits { time, output: MAX_LISTING }).await?;
    let mut candidates = Vec::new();
    for entry in listing.split(|b| *b == 0).filter_map(|line| std::str::from_utf8(line).ok()) {
        // `MODE TYPE ID SIZE<TAB>PATH`; SIZE is `-` for entries that are not files.
        let Some((facts, path)) = entry.split_once('\t') else { continue };
        let mut facts = facts.split_ascii_whitespace();
        let _mode = facts.next();
        let kind = facts.next();
        let id = facts.next();
        if kind == Some("commit") {
            return Ok(Err(Unsupported::Submodule(shown(path))));
        }
        let size = facts.next().and_then(|size| size.parse().ok());
        if let (Some(id), Some(size)) = (id, size)
            && POINTER_SIZE.contains(&size)
            && candidates.len() < MAX_CANDIDATES
        {
            candidates.push((id, path));
        }
    }
    if candidates.is_empty() {
        return Ok(Ok(()));
    }
    let ids: String = candidates.iter().map(|(id, _)| format!("{id}\n")).collect();
    // Besides each file's bytes there is a line of an id, a type and a size.
    let most = candidates.len() as u64 * (*POINTER_SIZE.end() + 100);
    let files = run(&["cat-file", "--batch"]).input(ids);
    let files = files.output(Limits { time, output: Bytes(most + 1) }).await?;
    Ok(match first_pointer(&files) {
        Some(index) => {
            Err(Unsupported::Lfs(candidates.get(index).map_or_else(String::new, |c| shown(c.1))))
        }
        None => Ok(()),
    })
}

/// Index of the first pointer in the output of `git cat-file --batch`: `ID blob SIZE\n`, the bytes,
/// `\n`.
fn first_pointer(mut printed: &[u8]) -> Option<usize> {
    for index in 0.. {
        let end = printed.iter().position(|b| *b == b'\n')?;
        let (head, rest) = printed.split_at_checked(end + 1)?;
        let size = std::str::from_utf8(head).ok()?.split_ascii_whitespace().nth(2)?.parse().ok()?;
        let (file, rest) = rest.split_at_checked(size)?;
        if file.starts_with(POINTER_PREFIX) {
            return Some(index);
        }
        printed = rest.get(1..)?;
    }
    None
}

fn shown(path: &str) -> String {
    path.chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect()
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

    /// The result for a tree with these files; a submodule if there is no text.
    async fn said(files: &[(&str, Option<&str>)]) -> Result<(), Unsupported> {
        let git = Git::default();
        let dir = tempfile::tempdir().unwrap();
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
    async fn an_lfs_pointer_is_named_for_any_size() {
        for size in ["1", "133742", "18446744073709551615"] {
            let (near, pointer) = ("x".repeat(130), pointer(size));
            let files = [("a.bin", Some(&*near)), ("model.bin", Some(&*pointer))];
            assert_eq!(said(&files).await, Err(Unsupported::Lfs("model.bin".into())), "{size}");
        }
    }
}
