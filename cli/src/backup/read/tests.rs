//! Which backups are accepted, and which forged or damaged ones are refused.

use super::*;
use crate::backup::{
    manifest::{FORMAT, Store},
    write::{Piece, write},
};
use jiff::Timestamp;
use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};
use tar::{EntryType, Header};
use tempfile::TempDir;

const FILES: [(&str, &[u8]); 3] =
    [("data/admin.key", b"secret"), ("data/tls/own.pem", b"pem"), ("images/index.json", b"{}")];

fn listed(path: &str, content: &[u8]) -> manifest::File {
    let sha256 = Hasher::default().with(content).finish().to_string();
    manifest::File { path: path.into(), bytes: content.len() as u64, sha256 }
}

fn list(files: &[(&str, &[u8])]) -> Manifest {
    Manifest {
        format: FORMAT,
        epsilon: "0.1.0".into(),
        created_at: Timestamp::UNIX_EPOCH,
        store: Store::Elsewhere,
        functions: 0,
        versions: 0,
        images: Vec::new(),
        left_out: Vec::new(),
        files: files.iter().map(|(path, content)| listed(path, content)).collect(),
    }
}

fn pieces() -> Vec<Piece> {
    let piece = |(path, content): &(&str, &'static [u8])| {
        let file = listed(path, content);
        let content = *content;
        Piece { file, open: Box::new(move || Ok(Box::new(content) as Box<dyn Read + Send>)) }
    };
    FILES.iter().map(piece).collect()
}

struct Made {
    dir: TempDir,
    file: PathBuf,
}

impl Made {
    fn written(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(name);
        write(&file, &list(&FILES), &pieces(), &|_| {}, &AtomicBool::new(false)).unwrap();
        Self { dir, file }
    }

    /// A backup that `write` would not make.
    fn by_hand(entries: &[(&str, EntryType, &[u8])], list: &Manifest) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("made.tar");
        let mut tar = tar::Builder::new(Vec::new());
        let text = serde_json::to_vec(list).unwrap();
        let first = [(NAME, EntryType::Regular, &text[..])];
        for (path, kind, content) in first.iter().chain(entries) {
            let mut header = Header::new_gnu();
            let name = &mut header.as_mut_bytes()[..path.len()];
            name.copy_from_slice(path.as_bytes()); // `set_path` would refuse some
            header.set_entry_type(*kind);
            header.set_mode(0o777);
            header.set_size(content.len() as u64);
            if !kind.is_file() {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            tar.append(&header, *content).unwrap();
        }
        fs::write(&file, tar.into_inner().unwrap()).unwrap();
        Self { dir, file }
    }

    fn read(&self, into: Option<&Path>) -> Result<Manifest, Unfit> {
        read(&self.file, into, &|_| {}, &AtomicBool::new(false))
    }

    /// Asserts that both readings refuse it and nothing is written outside of the draft.
    #[track_caller]
    fn refused(&self) -> String {
        let error = self.read(None).unwrap_err().to_string();
        let draft = self.dir.path().join("in/draft");
        fs::create_dir_all(&draft).unwrap();
        self.read(Some(&draft)).unwrap_err();
        let beside = fs::read_dir(self.dir.path().join("in")).unwrap().count();
        assert_eq!(beside, 1, "{error}");
        error
    }
}

#[test]
fn what_was_written_is_read_back() {
    for name in ["made.tar", "made.tar.gz", "made.tgz", "made"] {
        let made = Made::written(name);
        let mode = fs::metadata(&made.file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
        let is_gzip = fs::read(&made.file).unwrap().starts_with(&[0x1f, 0x8b]);
        assert_eq!(is_gzip, name.ends_with("gz"), "{name}");
        let draft = made.dir.path().join("draft");
        fs::create_dir(&draft).unwrap();
        assert_eq!(made.read(None).unwrap(), list(&FILES));
        assert_eq!(fs::read_dir(&draft).unwrap().count(), 0, "a look leaves nothing");
        assert_eq!(made.read(Some(&draft)).unwrap(), list(&FILES));
        for (path, content) in FILES {
            assert_eq!(fs::read(draft.join(path)).unwrap(), content, "{path}");
            let mode = fs::metadata(draft.join(path)).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{path}");
        }
        let names = fs::read_dir(made.dir.path()).unwrap().count();
        assert_eq!(names, 2, "no draft of {name} stays");
    }
}

#[test]
fn a_file_that_changes_meanwhile_makes_no_backup() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("made.tar");
    for content in [&b"secret and more"[..], b"sec"] {
        let mut pieces = pieces();
        pieces[0].open = Box::new(move || Ok(Box::new(content) as Box<dyn Read + Send>));
        let made = write(&file, &list(&FILES), &pieces, &|_| {}, &AtomicBool::new(false));
        assert!(made.unwrap_err().to_string().contains("changed"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
    let made = write(&file, &list(&FILES), &pieces(), &|_| {}, &AtomicBool::new(true));
    assert!(made.is_err(), "ended");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_was_changed_is_refused() {
    let whole = fs::read(Made::written("made.tar").file).unwrap();
    // One bit of each file's content. In the list, a bit is a syntax error or another digest.
    for content in FILES.map(|(_, content)| content) {
        let made = Made::written("made.tar");
        let mut bytes = whole.clone();
        let at = bytes.windows(512).rposition(|at| at.starts_with(content) && at[511] == 0);
        bytes[at.unwrap()] ^= 1;
        fs::write(&made.file, bytes).unwrap();
        assert!(made.refused().contains("damaged"));
    }
    // Cut anywhere before its last file's end.
    for part in [0, 1, 300, 512, 2000, whole.len() - 1024 - 512] {
        let made = Made::written("made.tar");
        fs::write(&made.file, &whole[..part]).unwrap();
        made.refused();
    }
    let packed = fs::read(Made::written("made.tgz").file).unwrap();
    let made = Made::written("made.tgz");
    fs::write(&made.file, &packed[..packed.len() / 2]).unwrap();
    made.refused();
}

#[test]
fn what_leads_elsewhere_is_refused() {
    use EntryType::{Link, Regular, Symlink};
    let key = ("data/admin.key", Regular, &b"secret"[..]);
    let only = list(&FILES[..1]);
    Made::by_hand(&[key], &only).read(None).unwrap();
    for (what, entries, list, want) in [
        ("a stranger", vec![key, ("data/more", Regular, &b"x"[..])], &only, "not on its list"),
        ("twice", vec![key, key], &only, "not on its list"),
        ("a link", vec![("data/admin.key", Symlink, &b""[..])], &only, "not a regular file"),
        ("a hard link", vec![("data/admin.key", Link, &b""[..])], &only, "not a regular file"),
        (
            "a device",
            vec![("data/admin.key", EntryType::Char, &b""[..])],
            &only,
            "not a regular file",
        ),
        (
            "a folder",
            vec![("data/admin.key", EntryType::Directory, &b""[..])],
            &only,
            "not a regular file",
        ),
        (
            "a long name",
            vec![("././@LongLink", EntryType::GNULongName, &b"data/x"[..]), key],
            &only,
            "not on",
        ),
        ("a way out", vec![("../admin.key", Regular, &b"secret"[..])], &only, "not on its list"),
        ("larger", vec![("data/admin.key", Regular, &b"secret and more"[..])], &only, "damaged"),
        ("none", vec![], &only, "missing"),
    ] {
        let error = Made::by_hand(&entries, list).refused();
        assert!(error.contains(want), "{what}: {error}");
    }
    let mut out = list(&[("data/x", b"x")]);
    out.files[0].path = "../x".into();
    let error = Made::by_hand(&[("../x", Regular, b"x")], &out).refused();
    assert!(error.contains("leads elsewhere"), "{error}");
}

#[test]
fn what_is_no_backup_says_so() {
    for content in [&b""[..], b"hello", &[0x1f, 0x8b, 1, 2], &[0; 4096], &[b'x'; 4096]] {
        let made = Made::written("made.tar");
        fs::write(&made.file, content).unwrap();
        assert!(made.refused().contains("not a backup"), "{content:?}");
    }
    let mut later = list(&FILES);
    later.format = FORMAT + 1;
    assert!(Made::by_hand(&[], &later).refused().contains("format 2"));
}
