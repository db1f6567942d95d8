//! Archives that no honest client sends: paths and links that leave the tree, devices, bombs, bytes
//! that are not an archive. And links in a folder, as the command line reads them.

use crate::up;
use epsilon_e2e::{
    project,
    project::{archive, raw_header},
};
use std::io::{Write, repeat};
use tar::EntryType;

const INDEX: &str = "exports.hostile = (req, res) => res.send('x')";

async fn refused(query: &str, archive: Vec<u8>, codes: &[&str], says: &str) {
    let up = up().await;
    let deployment = up.deploy_archive(query, archive).await;
    let error = deployment.failed();
    assert!(codes.contains(&error.code.as_str()), "{error:?}");
    assert!(error.message.contains(says), "`{says}` in {error:?}");
    up.get("/hostile").await.expect_error(404, "FUNCTION_NOT_FOUND");
}

/// An archive with a valid index.js and one entry of this path and kind.
fn with_entry(path: &str, kind: EntryType, link: Option<&str>) -> Vec<u8> {
    archive(|tar| {
        let header = raw_header("index.js", EntryType::Regular, INDEX.len() as u64);
        tar.append(&header, INDEX.as_bytes()).unwrap();
        let mut header = raw_header(path, kind, 0);
        if let Some(link) = link {
            header.set_link_name_literal(link).unwrap();
            header.set_cksum();
        }
        tar.append(&header, std::io::empty()).unwrap();
    })
}

macro_rules! bad_entries {
    ($($test:ident: $path:expr, $kind:ident, $link:expr => $says:expr;)*) => {$(
        #[tokio::test]
        async fn $test() {
            let archive = with_entry($path, EntryType::$kind, $link);
            refused("folder=hostile", archive, &["SOURCE_REFUSED"], $says).await;
        }
    )*};
}

bad_entries! {
    path_with_two_dots: "../escaped.js", Regular, None => "../escaped.js";
    path_with_two_dots_inside: "lib/../../escaped.js", Regular, None => "escaped.js";
    absolute_path: "/tmp/escaped.js", Regular, None => "/tmp/escaped.js";
    character_device: "null", Char, None => "`null`";
    block_device: "disk", Block, None => "`disk`";
    pipe: "pipe", Fifo, None => "`pipe`";
    symbolic_link_out: "link", Symlink, Some("../../etc/passwd") => "`link`";
    absolute_symbolic_link: "link", Symlink, Some("/etc/passwd") => "`link`";
    hard_link_out: "link", Link, Some("../../../etc/shadow") => "/etc/shadow";
    cyclic_symbolic_link: "link", Symlink, Some("link") => "`link`";
}

#[tokio::test]
async fn writing_through_a_link_that_came_before() {
    let archive = archive(|tar| {
        let mut header = raw_header("link", EntryType::Symlink, 0);
        header.set_link_name_literal("/tmp").unwrap();
        header.set_cksum();
        tar.append(&header, std::io::empty()).unwrap();
        let header = raw_header("link/escaped-by-e2e", EntryType::Regular, 1);
        tar.append(&header, &b"x"[..]).unwrap();
    });
    refused("folder=hostile", archive, &["SOURCE_REFUSED"], "link").await;
    assert!(!std::path::Path::new("/tmp/escaped-by-e2e").exists());
}

#[tokio::test]
async fn a_file_of_a_gigabyte_in_a_small_archive() {
    let archive = tokio::task::spawn_blocking(|| {
        archive(|tar| {
            let size = 1 << 30;
            let header = raw_header("zeros", EntryType::Regular, size);
            tar.append(&header, std::io::Read::take(repeat(0), size)).unwrap();
        })
    })
    .await
    .unwrap();
    refused("folder=hostile", archive, &["SOURCE_TOO_LARGE"], "zeros").await;
}

#[tokio::test]
async fn too_many_files() {
    let archive = archive(|tar| {
        for n in 0..30_000 {
            let header = raw_header(&format!("f{n}"), EntryType::Regular, 0);
            tar.append(&header, std::io::empty()).unwrap();
        }
    });
    refused("folder=hostile", archive, &["SOURCE_TOO_LARGE"], "files").await;
}

#[tokio::test]
async fn bytes_that_are_no_archive() {
    refused("folder=hostile", b"hello".to_vec(), &["SOURCE_REFUSED", "SOURCE_INCOMPLETE"], "")
        .await;
    refused("folder=hostile", Vec::new(), &["SOURCE_REFUSED", "SOURCE_INCOMPLETE"], "").await;
    let mut gzip = flate2_of(b"not a tar archive at all");
    refused("folder=hostile", gzip.clone(), &["SOURCE_REFUSED", "SOURCE_INCOMPLETE"], "").await;
    gzip.truncate(gzip.len() - 6);
    refused("folder=hostile", gzip, &["SOURCE_REFUSED", "SOURCE_INCOMPLETE"], "").await;
}

#[tokio::test]
async fn an_archive_that_breaks_off() {
    let mut whole = project!("hostile", { "index.js" => INDEX }).archive();
    whole.truncate(whole.len() * 2 / 3);
    refused("folder=hostile", whole, &["SOURCE_REFUSED", "SOURCE_INCOMPLETE"], "").await;
}

fn flate2_of(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn odd_folder_names_and_queries_are_handled() {
    let up = up().await;
    let project = project!("tame", { "index.js" => "exports.tame = (req, res) => res.send('x')" });
    let deployment = up.deploy_archive("folder=..%2F..%2Fetc", project.archive()).await;
    assert_eq!(deployment.done().project.as_ref().map(|p| p.as_str()), Some("etc"));
    let deployment = up.deploy_archive("foldr=x", project.archive()).await;
    assert!(deployment.failed().message.contains("foldr"), "{deployment:?}");
    let deployment = up.deploy_archive("folder=tame&only=a%20b", project.archive()).await;
    assert!(deployment.failed().message.contains("a b"), "{deployment:?}");
}

#[tokio::test]
async fn links_inside_the_project_stay() {
    let up = up().await;
    let project = project!("linked", {
        "index.js" => "exports.linked = (req, res) => res.send(require('./alias.js').text)",
        "lib/real.js" => "exports.text = 'through a link'",
    });
    project.link("alias.js", "lib/real.js");
    up.deploy(&project).await;
    assert_eq!(up.get("/linked").await.expect(200).text(), "through a link");
}

#[tokio::test]
async fn cli_refuses_links_that_leave_or_loop() {
    let up = up().await;
    for target in ["/etc/passwd", "../../outside", "loop"] {
        let project = project!("linker", { "index.js" => INDEX });
        project.link("loop", target);
        let outcome = up.cli_in(&project.path(), &["deploy"]).await.expect(1);
        assert!(outcome.stderr.contains("loop"), "{target}: {outcome}");
    }
}

#[tokio::test]
async fn cli_refuses_a_huge_file_before_sending() {
    let up = up().await;
    let project = project!("heavy", { "index.js" => INDEX });
    let file = std::fs::File::create(project.path().join("dump.sql")).unwrap();
    file.set_len(1 << 30).unwrap();
    let outcome = up.cli_in(&project.path(), &["deploy"]).await.expect(1);
    assert!(outcome.stderr.contains("dump.sql"), "{outcome}");
}
