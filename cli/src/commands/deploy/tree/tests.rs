//! Which files are pushed, and which trees are refused.

use super::*;
use std::os::unix::fs::symlink;

const LIMIT: Bytes = Bytes::mib(256);

/// Creates a folder: `path` with content, `path/` a folder, `path -> target` a link.
fn folder(paths: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for spec in paths {
        let (path, target) = spec.split_once(" -> ").map_or((*spec, None), |(p, t)| (p, Some(t)));
        let full = dir.path().join(path);
        fs::create_dir_all(full.parent().unwrap()).unwrap();
        match target {
            Some(target) => symlink(target, full).unwrap(),
            None if path.ends_with('/') => fs::create_dir_all(full).unwrap(),
            None => fs::write(full, path).unwrap(),
        }
    }
    dir
}

fn names(dir: &tempfile::TempDir) -> Vec<String> {
    let tree = Tree::read(dir.path(), LIMIT).unwrap();
    tree.entries.iter().map(|entry| entry.path.display().to_string()).collect()
}

fn refusal(dir: &tempfile::TempDir) -> String {
    format!("{:?}", Tree::read(dir.path(), LIMIT).unwrap_err())
}

#[test]
fn hidden_files_are_included_git_and_node_modules_never() {
    let dir =
        folder(&[".env", "a.js", ".git/HEAD", "node_modules/x/i.js", "sub/node_modules/y.js"]);
    assert_eq!(names(&dir), [".env", "a.js"]);
}

#[test]
fn both_ignore_files_count_without_a_git_repository() {
    let dir = folder(&["a.js", "b.log", "c.tmp", "sub/d.log"]);
    fs::write(dir.path().join(".gitignore"), "*.log\n").unwrap();
    fs::write(dir.path().join(".epsilonignore"), "*.tmp\n").unwrap();
    assert_eq!(names(&dir), [".epsilonignore", ".gitignore", "a.js"]);
}

#[test]
fn empty_folders_belong_and_ignored_ones_do_not() {
    let dir = folder(&["a.js", "sub/b.js", "uploads/", "deep/er/", "dist/", "logs/x.log"]);
    fs::write(dir.path().join(".gitignore"), "dist/\n*.log\n").unwrap();
    assert_eq!(names(&dir), [".gitignore", "a.js", "deep/er", "sub/b.js", "uploads"]);
    assert_eq!(Tree::read(dir.path(), LIMIT).unwrap().files(), 3);
    let dir = folder(&["uploads/"]);
    assert!(refusal(&dir).contains("has no files to deploy"));
}

#[test]
fn a_too_large_tree_names_its_largest_parts() {
    let dir = folder(&["a.js", "data/1.csv", "dist/1", "dist/2", "dist/deep/3", "src/1", "src/2"]);
    fs::write(dir.path().join("data/1.csv"), vec![0; 3 << 20]).unwrap();
    let most = Tree::read(dir.path(), LIMIT).unwrap().most();
    assert!(most.starts_with("most bytes are in `data/` 3MiB, "), "{most}");
    assert!(most.contains("most files in `dist/` 3, `src/` 2, "), "{most}");
}

#[test]
fn links_inside_the_tree_stay_links() {
    let dir = folder(&["lib/a.js", "index.js -> lib/a.js", "lib/up.js -> ../lib/a.js", "l -> lib"]);
    let tree = Tree::read(dir.path(), LIMIT).unwrap();
    let links = tree.entries.iter().filter(|entry| matches!(entry.kind, Kind::Link { .. }));
    assert_eq!(links.count(), 3);
    assert_eq!(tree.files(), 4, "the content of a linked folder is not packed twice");
}

#[test]
fn a_link_that_leaves_the_tree_is_refused() {
    for target in ["/etc/passwd", "../x", "sub/../../x"] {
        let dir = folder(&["a.js", &format!("bad -> {target}")]);
        assert!(refusal(&dir).contains("points outside of the project"), "{target}");
    }
}

#[test]
fn link_leaving_the_tree_through_another_is_refused() {
    let dir = folder(&["p/sub/a.js", "p/here -> .", "p/out -> here/../x", "x"]);
    let text = format!("{:?}", Tree::read(&dir.path().join("p"), LIMIT).unwrap_err());
    assert!(text.contains("points outside of the project"), "{text}");
}

#[test]
fn a_ring_of_links_is_refused() {
    let dir = folder(&["a.js", "x -> y", "y -> x"]);
    assert!(refusal(&dir).contains("cannot be followed"));
}

#[test]
fn huge_file_is_refused_before_reading() {
    let dir = folder(&["a.js"]);
    let huge = fs::File::create(dir.path().join("model.bin")).unwrap();
    huge.set_len(1 << 30).unwrap(); // sparse
    assert!(refusal(&dir).contains("`model.bin` is 1GiB; a file may have 256MiB"));
}

#[test]
fn an_empty_folder_is_wrong_usage() {
    assert!(refusal(&folder(&["sub/"])).contains("has no files to deploy"));
}

#[test]
fn a_socket_is_refused() {
    let dir = folder(&["a.js"]);
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("s.sock")).unwrap();
    assert!(refusal(&dir).contains("`s.sock` is neither a file nor a folder nor a link"));
}
