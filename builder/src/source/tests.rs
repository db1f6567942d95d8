//! Archives that people send, and archives that only an attacker makes.

use super::*;
use epsilon_api::body;
use flate2::{Compression, write::GzEncoder};
use std::{fs, io::Write, os::unix::fs::PermissionsExt};
use tar::{EntryType, Header};

/// A tar being built. Headers are filled in by hand: the crate's own builder refuses what is tested
/// here.
#[derive(Default)]
struct Pack(Vec<u8>);

impl Pack {
    fn entry(mut self, kind: EntryType, path: &str, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o640);
        header.set_size(content.len() as u64);
        self.raw(header, content);
        self
    }

    fn raw(&mut self, mut header: Header, content: &[u8]) {
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, path, "", content.as_bytes())
    }

    fn folder(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, "", b"")
    }

    fn executable(mut self, path: &str) -> Self {
        let mut header = Header::new_ustar();
        header.set_path(path).unwrap();
        header.set_mode(0o700);
        header.set_size(0);
        self.raw(header, b"");
        self
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, b"")
    }

    fn special(self, kind: EntryType, path: &str, link: &str) -> Self {
        self.entry(kind, path, link, b"")
    }

    fn gz(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        gzip(&self.0)
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

/// A source with these files, and empty folders (`path/`), for tests of code that reads sources.
pub(crate) async fn project(files: &[(&str, &str)]) -> (tempfile::TempDir, Source) {
    let work = tempfile::tempdir().unwrap();
    let packed = files.iter().fold(Pack::default(), |pack, (path, content)| {
        if path.ends_with('/') { pack.folder(path) } else { pack.file(path, content) }
    });
    let limits = SourceLimits::default();
    let source = receive(body::full(packed.gz()), &limits, work.path()).await.unwrap();
    (work, source)
}

/// Receives it in pieces of 1,000 bytes.
async fn receive_with(
    archive: &[u8],
    limits: &SourceLimits,
    work: &Path,
) -> Result<Source, BuildError> {
    let pieces: Vec<_> = archive
        .chunks(1000)
        .map(|piece| Ok::<_, std::io::Error>(http_body::Frame::data(piece.to_vec().into())))
        .collect();
    let stream = futures_util::stream::iter(pieces);
    receive(body::boxed(http_body_util::StreamBody::new(stream)), limits, work).await
}

fn small() -> SourceLimits {
    SourceLimits {
        compressed: Bytes(200_000),
        unpacked: Bytes::mib(40),
        file: Bytes::mib(30),
        files: 10,
        path: 120,
        depth: 3,
        ..SourceLimits::default()
    }
}

/// Waits until a source is removed: removal runs on a thread of its own.
async fn removed(work: &Path) {
    for _ in 0..500 {
        if fs::read_dir(work).unwrap().next().is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("left behind: {:?}", fs::read_dir(work).unwrap().collect::<Vec<_>>());
}

/// Each row is a named test: an archive => the code and a part of the message; in every case
/// nothing is left behind.
macro_rules! refused {
    ($($name:ident: $archive:expr => $code:literal, $text:literal;)*) => {$(
        #[tokio::test]
        async fn $name() {
            let work = tempfile::tempdir().unwrap();
            let err = receive_with(&$archive, &small(), work.path()).await.unwrap_err();
            assert_eq!(err.code, $code, "{err}");
            assert!(err.message.contains($text), "{err}");
            removed(work.path()).await;
        }
    )*};
}

fn zeros(bytes: usize) -> Vec<u8> {
    Pack::default().entry(EntryType::Regular, "zeros", "", &vec![0; bytes]).gz()
}

fn giant() -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_path("giant.bin").unwrap();
    header.set_size(1 << 30);
    let mut pack = Pack::default();
    pack.raw(header, b"");
    pack.gz()
}

fn many(count: usize) -> Vec<u8> {
    (0..count).fold(Pack::default(), |pack, n| pack.file(&format!("f{n}"), "")).gz()
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let content: Vec<u8> = (0..bytes).map(|_| next()).collect();
    Pack::default().entry(EntryType::Regular, "noise", "", &content).gz()
}

fn two_sizes() -> Vec<u8> {
    let pax = "12 size=999\n";
    Pack::default().entry(EntryType::XHeader, "x", "", pax.as_bytes()).file("a", "a").gz()
}

fn huge_long_name() -> Vec<u8> {
    Pack::default().entry(EntryType::GNULongName, "x", "", &[b'a'; 100_000]).file("a", "").gz()
}

fn long_name(name: &str) -> Vec<u8> {
    Pack::default().entry(EntryType::GNULongName, "x", "", name.as_bytes()).file("a", "").gz()
}

fn cut(archive: Vec<u8>) -> Vec<u8> {
    archive[..archive.len() / 2].to_vec()
}

fn pack() -> Pack {
    Pack::default()
}

refused! {
    parent_folder: pack().file("../x", "").gz() => "SOURCE_REFUSED", "`../x` points outside";
    parent_folder_inside: pack().file("a/../../x", "").gz() => "SOURCE_REFUSED", "points outside";
    absolute: pack().file("/etc/cron.d/x", "").gz() => "SOURCE_REFUSED", "absolute path";
    absolute_in_a_long_name: long_name("/etc/x") => "SOURCE_REFUSED", "absolute path";
    control_characters: pack().file("a\u{1b}[2Jb", "").gz() => "SOURCE_REFUSED", "control characters";
    character_device: pack().special(EntryType::Char, "null", "").gz() => "SOURCE_REFUSED", "`null` is a device";
    block_device: pack().special(EntryType::Block, "sda", "").gz() => "SOURCE_REFUSED", "a device";
    named_pipe: pack().special(EntryType::Fifo, "pipe", "").gz() => "SOURCE_REFUSED", "a named pipe";
    unknown_kind: pack().special(EntryType::new(b'Z'), "z", "").gz() => "SOURCE_REFUSED", "neither";
    sparse: pack().special(EntryType::GNUSparse, "s", "").gz() => "SOURCE_REFUSED", "a sparse file";
    hard_link_out: pack().special(EntryType::Link, "l", "/etc/passwd").gz() => "SOURCE_REFUSED", "absolute";
    hard_link_up: pack().special(EntryType::Link, "l", "../x").gz() => "SOURCE_REFUSED", "points outside";
    hard_link_to_nothing: pack().special(EntryType::Link, "l", "x").gz() => "SOURCE_REFUSED", "no earlier file";
    hard_link_to_a_link: pack().symlink("s", "x").special(EntryType::Link, "l", "s").gz()
        => "SOURCE_REFUSED", "no earlier file";
    symlink_absolute: pack().symlink("s", "/etc/passwd").gz() => "SOURCE_REFUSED", "`s` is a link to the absolute path";
    symlink_out: pack().symlink("a/s", "../../x").gz() => "SOURCE_REFUSED", "`a/s` is a link that points outside";
    symlink_out_through_another: pack().file("a/b/f", "").symlink("s", "a/b").symlink("t", "s/../../../x").gz()
        => "SOURCE_REFUSED", "`t` is a link that points outside";
    symlink_to_itself: pack().symlink("s", "s").gz() => "SOURCE_REFUSED", "goes in circles";
    symlinks_in_a_ring: pack().symlink("s", "t").symlink("t", "s").gz() => "SOURCE_REFUSED", "goes in circles";
    symlink_to_its_folder: pack().file("a/f", "").symlink("a/s", "../a").gz() => "SOURCE_REFUSED", "goes in circles";
    symlink_to_the_root: pack().symlink("s", ".").gz() => "SOURCE_REFUSED", "goes in circles";
    symlink_without_target: pack().symlink("s", "").gz() => "SOURCE_REFUSED", "empty";
    write_through_a_symlink: pack().symlink("s", "t").file("s/x", "").gz()
        => "SOURCE_REFUSED", "`s/x` is below `s`, which is a link";
    write_over_a_symlink: pack().symlink("s", "t").file("s", "x").gz() => "SOURCE_REFUSED", "twice";
    link_over_a_folder: pack().file("a/f", "").symlink("a", "b").gz() => "SOURCE_REFUSED", "twice";
    below_a_file: pack().file("a", "").file("a/b", "").gz() => "SOURCE_REFUSED", "which is a file";
    given_twice: pack().file("a", "1").file("./a", "2").gz() => "SOURCE_REFUSED", "twice";
    too_deep: pack().file("a/b/c/d/e", "").gz() => "SOURCE_REFUSED", "deeper than 3 folders";
    too_long_a_path: long_name(&"ab/".repeat(60)) => "SOURCE_REFUSED", "longer than 120 bytes";
    too_many_files: many(11) => "SOURCE_TOO_LARGE", "more than 10 files";
    too_large_a_file: giant() => "SOURCE_TOO_LARGE", "`giant.bin` has 1GiB; one file may have 30MiB";
    too_large_a_real_file: zeros(31 << 20) => "SOURCE_TOO_LARGE", "`zeros` has 31MiB";
    too_large_an_archive: noise(250_000) => "SOURCE_TOO_LARGE", "the archive is larger than";
    bomb: zeros(29 << 20) => "SOURCE_TOO_LARGE", "more than 200 times its size";
    two_sizes_for_one_member: two_sizes() => "SOURCE_REFUSED", "two sizes";
    extension_of_unlikely_size: huge_long_name() => "SOURCE_REFUSED", "unlikely size";
    cut_in_the_middle: cut(noise(100_000)) => "SOURCE_INCOMPLETE", "cut";
    no_gzip: Vec::from(*b"PK\x03\x04 this is a zip") => "SOURCE_REFUSED", "not a tar.gz";
    gzip_without_tar: gzip(&[7; 5000]) => "SOURCE_REFUSED", "not a tar.gz";
    nothing_at_all: Vec::new() => "SOURCE_REFUSED", "the upload is empty";
}

#[tokio::test]
async fn a_project_arrives_as_it_was() {
    let work = tempfile::tempdir().unwrap();
    let archive = pack()
        .entry(EntryType::Directory, "./", "", b"")
        .file("./index.js", "hello")
        .entry(EntryType::Directory, "./bin/", "", b"")
        .executable("bin/run")
        .symlink("bin/main.js", "../index.js")
        .symlink("later", "not/there")
        .special(EntryType::Link, "copy.js", "index.js")
        .file("node_modules/x/index.js", "no")
        .file("a/.git/config", "no")
        .gz();
    let source = receive_with(&archive, &small(), work.path()).await.unwrap();

    let paths: Vec<_> = source.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["bin/main.js", "bin/run", "copy.js", "index.js", "later"]);
    let mode =
        |path: &str| fs::metadata(source.root.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(""), mode("bin"), mode("bin/run"), mode("index.js")),
        (0o755, 0o755, 0o755, 0o644)
    );
    assert_eq!(fs::read_to_string(source.root.join("bin/main.js")).unwrap(), "hello");
    assert_eq!(fs::read_to_string(source.root.join("copy.js")).unwrap(), "hello");
    assert!(source.get("bin/run").unwrap().executable);
    assert_eq!(source.get("index.js").unwrap().sha256, ContentDigest::of(b"hello"));
    assert_eq!(source.notes.len(), 2, "{:?}", source.notes);
    assert!(!source.root.join("node_modules").exists());

    drop(source);
    removed(work.path()).await;
}

#[tokio::test]
async fn folders_with_nothing_in_them_are_known() {
    let (_work, with) =
        project(&[("a/b/", ""), ("a-b", ""), ("d/", ""), ("d/x.js", ""), ("e/", "")]).await;
    assert_eq!(with.empty_folders, ["a/b", "e"]);
    assert!(with.root.join("a/b").is_dir());
    let (_work, without) = project(&[("a-b", ""), ("d/x.js", "")]).await;
    assert_ne!(with.digest, without.digest);
    assert_eq!(without.empty_folders, [""; 0]);
}

#[tokio::test]
async fn long_names_and_pax_names_are_read() {
    let work = tempfile::tempdir().unwrap();
    let long = format!("{}/f.js", "n".repeat(90));
    let pax = "15 path=üml.js\n".replace("15", "16");
    let archive = pack()
        .entry(EntryType::GNULongName, "x", "", long.as_bytes())
        .file("short", "")
        .entry(EntryType::XHeader, "x", "", pax.as_bytes())
        .file("short", "")
        .entry(
            EntryType::XGlobalHeader,
            "g",
            "",
            b"52 comment=0123456789012345678901234567890123456789\n",
        )
        .file("short", "")
        .gz();
    let source = receive_with(&archive, &small(), work.path()).await.unwrap();
    let paths: Vec<_> = source.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, [long.as_str(), "short", "üml.js"]);
}

#[tokio::test]
async fn small_files_are_read_within_a_limit() {
    let work = tempfile::tempdir().unwrap();
    let archive = pack()
        .file("d/a", "12345")
        .symlink("good", "d/a")
        .symlink("folder", "d")
        .symlink("none", "x");
    let source = receive_with(&archive.gz(), &small(), work.path()).await.unwrap();
    let read = |path, max| source.read(path, Bytes(max)).map_err(|err| err.message);
    assert_eq!(read("good", 5), Ok(Some(b"12345".to_vec())));
    assert_eq!(read("good", 4), Err("good is larger than 4B".into()));
    assert_eq!(read("folder", 5), Err("folder is a folder".into()));
    assert_eq!(
        (read("none", 5), read("absent", 5), read("../x", 5)),
        (Ok(None), Ok(None), Ok(None))
    );
}

#[tokio::test]
async fn digest_depends_on_content_not_on_archive() {
    let work = tempfile::tempdir().unwrap();
    let digest = async |archive: Vec<u8>| {
        receive_with(&archive, &small(), work.path()).await.unwrap().digest
    };
    let one = digest(pack().file("a", "1").file("b", "2").gz()).await;
    assert_eq!(one, digest(pack().file("b", "2").file("./a", "1").gz()).await);
    assert_ne!(one, digest(pack().file("a", "1").file("b", "3").gz()).await);
    assert_ne!(one, digest(pack().file("a", "1").file("c", "2").gz()).await);
    assert_ne!(one, digest(pack().file("a", "1").symlink("b", "2").gz()).await);
}

#[tokio::test]
async fn small_files_add_up_and_hard_links_count_fully() {
    let work = tempfile::tempdir().unwrap();
    let limits = SourceLimits { unpacked: Bytes(10_000), ..small() };
    let kilos = "x".repeat(4000);
    let files = pack().file("a", &kilos).file("b", &kilos).file("c", &kilos).gz();
    let links = (0..3).fold(pack().file("a", &kilos), |pack, n| {
        pack.special(EntryType::Link, &format!("l{n}"), "a")
    });
    for archive in [files, links.gz()] {
        let err = receive_with(&archive, &limits, work.path()).await.unwrap_err();
        assert_eq!(err.message, "the archive unpacks to more than 9.8KiB");
    }
}

#[tokio::test]
async fn an_empty_archive_is_an_empty_source() {
    let work = tempfile::tempdir().unwrap();
    assert_eq!(receive_with(&pack().gz(), &small(), work.path()).await.unwrap().files, []);
}

#[tokio::test]
async fn a_silent_upload_is_given_up() {
    let limits = SourceLimits { stall: Duration::from_millis(20), ..small() };
    let work = tempfile::tempdir().unwrap();
    let silent =
        futures_util::stream::pending::<Result<http_body::Frame<bytes::Bytes>, std::io::Error>>();
    let silent = body::boxed(http_body_util::StreamBody::new(silent));
    let err = receive(silent, &limits, work.path()).await.unwrap_err();
    assert_eq!(
        (&*err.code, err.message.as_str()),
        ("SOURCE_INCOMPLETE", "the upload stalled for 20ms")
    );
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let work = tempfile::tempdir().unwrap();
    let archive = noise(100_000);
    let pieces = [
        Ok(http_body::Frame::data(bytes::Bytes::from(archive[..50_000].to_vec()))),
        Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
    ];
    let body = body::boxed(http_body_util::StreamBody::new(futures_util::stream::iter(pieces)));
    let err = receive(body, &small(), work.path()).await.unwrap_err();
    assert_eq!((&*err.code, err.message.contains("was cut")), ("SOURCE_INCOMPLETE", true), "{err}");
    removed(work.path()).await;
}

#[tokio::test]
async fn a_cancelled_upload_leaves_nothing() {
    let work = tempfile::tempdir().unwrap();
    let limits = small();
    let archive = bytes::Bytes::from(noise(100_000));
    let first = futures_util::stream::iter([Ok::<_, std::io::Error>(http_body::Frame::data(
        archive.slice(..50_000),
    ))]);
    let body = body::boxed(http_body_util::StreamBody::new(futures_util::StreamExt::chain(
        first,
        futures_util::stream::pending(),
    )));
    let receiving = receive(body, &limits, work.path());
    tokio::select! {
        biased; // the upload first: it has to create its folder before it is dropped
        done = receiving => panic!("ended: {done:?}"),
        () = async { while fs::read_dir(work.path()).unwrap().next().is_none() { tokio::task::yield_now().await } } => {}
    }
    removed(work.path()).await;
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    /// Any bytes instead of a tar: an error or a source, never a panic, never a file outside.
    #[test]
    fn unpacking_never_panics(mut bytes in proptest::collection::vec(0u8.., 0..2000), flips in proptest::collection::vec((0usize..4000, 0u8..), 0..8), whole in 0..2) {
        if whole == 1 {
            bytes = pack().file("a/b", "content").symlink("s", "a/b").file("c", "x").0;
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let work = tempfile::tempdir().unwrap();
        let _ = runtime.block_on(receive_with(&gzip(&bytes), &small(), work.path()));
    }
}
