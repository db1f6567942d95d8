//! Reads the archive of `docker save` without unpacking it (the offset and the digest of each file)
//! and makes the files of an OCI image layout of it, each layer once by its content.
//!
//! Classic engines name a layer after the image that it came with, and write links for repeated
//! ones; newer ones write a layout themselves, perhaps with compressed layers. Both list their
//! images in `manifest.json`.

use super::LayoutFile;
use crate::error;
use crate::image::archive::Listed;
use crate::publish::blob::Blob;
use crate::publish::layout::Packed;
use crate::publish::{blob, layout};
use crate::source::Hasher;
use epsilon_api::build::BuildError;
use oci_spec::image::MediaType;
use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read},
    path::{Component, Path, PathBuf},
};

/// Most links in a chain of links.
const LINKS: usize = 8;
/// Largest list of images, and largest configuration of one.
const LARGEST_TEXT: u64 = 64 << 20;

enum Entry {
    File(Blob),
    Link(PathBuf),
}

/// The files of a layout with these images.
pub(super) fn layout(archive: &Path, wanted: &[String]) -> Result<Vec<LayoutFile>, BuildError> {
    let packed = packed(archive, wanted)?;
    let files = layout::files(&packed).map_err(|err| error::file("describing images", &err))?;
    Ok(files.into_iter().map(|(path, blob)| LayoutFile { path, blob }).collect())
}

fn packed(archive: &Path, wanted: &[String]) -> Result<Vec<Packed>, BuildError> {
    let doing = |err: io::Error| error::file("reading the engine's images", &err);
    let entries = entries(archive).map_err(doing)?;
    let list = text(&entries, "manifest.json").map_err(doing)?;
    let list: Vec<Listed> = serde_json::from_slice(&list).map_err(|err| doing(err.into()))?;
    let mut packed = Vec::with_capacity(wanted.len());
    for name in wanted {
        let tagged = tagged(name);
        let has_name = |image: &&Listed| image.repo_tags.iter().flatten().any(|tag| *tag == tagged);
        let image = list.iter().find(has_name).ok_or_else(|| {
            error::engine_failed(format!("the container engine did not give the image `{name}`"))
        })?;
        let config = Blob::in_memory(text(&entries, &image.config).map_err(doing)?);
        let mut layers = Vec::with_capacity(image.layers.len());
        for file in &image.layers {
            let layer = find(&entries, file).map_err(doing)?;
            layers.push((layer, packing(layer).map_err(doing)?));
        }
        let manifest = Blob::in_memory(blob::manifest_of(&config, &layers)?);
        let layers = layers.into_iter().map(|(layer, _)| layer.clone()).collect();
        packed.push(Packed { name: name.clone(), manifest, config, layers });
    }
    Ok(packed)
}

/// The name as the engine lists it: `latest` where it has no tag.
fn tagged(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') { name.to_owned() } else { format!("{name}:latest") }
}

fn entries(archive: &Path) -> io::Result<HashMap<PathBuf, Entry>> {
    let mut entries = HashMap::new();
    let mut tar = tar::Archive::new(BufReader::with_capacity(256 << 10, File::open(archive)?));
    for entry in tar.entries()? {
        let mut entry = entry?;
        let path = normal(&entry.path()?);
        let kind = entry.header().entry_type();
        if kind.is_symlink() || kind.is_hard_link() {
            let Some(target) = entry.link_name()? else { continue };
            let beside = path.parent().unwrap_or(Path::new(""));
            let target =
                if kind.is_symlink() { normal(&beside.join(target)) } else { normal(&target) };
            entries.insert(path, Entry::Link(target));
        } else if kind.is_file() {
            let (at, bytes) = (entry.raw_file_position(), entry.size());
            let digest = format!("sha256:{}", digest(&mut entry)?);
            entries.insert(path, Entry::File(Blob::part_of(archive, at, bytes, digest)));
        }
    }
    Ok(entries)
}

fn digest(from: &mut impl Read) -> io::Result<String> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(hasher.finish().to_string()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Normalizes a path: `a/../b` is `b`. It names an entry of the archive, not a file that is opened.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut path, part| {
        match part {
            Component::Normal(part) => path.push(part),
            Component::ParentDir => drop(path.pop()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
        path
    })
}

fn find<'a>(entries: &'a HashMap<PathBuf, Entry>, name: &str) -> io::Result<&'a Blob> {
    let mut path = normal(Path::new(name));
    for _ in 0..LINKS {
        match entries.get(&path) {
            Some(Entry::File(blob)) => return Ok(blob),
            Some(Entry::Link(target)) => path = target.clone(),
            None => break,
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("the archive holds no `{name}`")))
}

fn text(entries: &HashMap<PathBuf, Entry>, name: &str) -> io::Result<Vec<u8>> {
    let blob = find(entries, name)?;
    if blob.bytes > LARGEST_TEXT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("`{name}` is too large")));
    }
    let mut text = Vec::new();
    blob.open()?.read_to_end(&mut text)?;
    Ok(text)
}

/// How a layer is packed, by its first bytes.
fn packing(layer: &Blob) -> io::Result<MediaType> {
    let mut first = Vec::new();
    layer.open()?.take(4).read_to_end(&mut first)?;
    Ok(match first[..] {
        [0x1f, 0x8b, ..] => MediaType::ImageLayerGzip,
        [0x28, 0xb5, 0x2f, 0xfd] => MediaType::ImageLayerZstd,
        _ => MediaType::ImageLayer,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_tag_is_the_latest() {
        assert_eq!(tagged("acme/base"), "acme/base:latest");
        assert_eq!(tagged("127.0.0.1:5000/base"), "127.0.0.1:5000/base:latest");
        assert_eq!(tagged("acme/base:3"), "acme/base:3");
    }
    use std::collections::BTreeMap;
    use tar::{EntryType, Header};

    struct Saved(tar::Builder<Vec<u8>>);

    impl Saved {
        fn file(&mut self, name: &str, content: &[u8]) {
            let mut header = Header::new_gnu();
            header.set_size(content.len() as u64);
            self.0.append_data(&mut header, name, content).unwrap();
        }

        fn link(&mut self, name: &str, target: &str) {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            self.0.append_link(&mut header, name, target).unwrap();
        }

        fn layout(self, wanted: &[&str]) -> Result<BTreeMap<String, Vec<u8>>, BuildError> {
            let dir = tempfile::tempdir().unwrap();
            let archive = dir.path().join("images.tar");
            std::fs::write(&archive, self.0.into_inner().unwrap()).unwrap();
            let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            let files = layout(&archive, &wanted)?;
            let read = files.into_iter().map(|file| {
                let mut content = Vec::new();
                file.open().unwrap().read_to_end(&mut content).unwrap();
                assert_eq!(content.len() as u64, file.bytes(), "{}", file.path);
                assert_eq!(digest(&mut &content[..]).unwrap(), file.sha256(), "{}", file.path);
                (file.path, content)
            });
            Ok(read.collect())
        }
    }

    /// As a classic engine writes it: a layer that two images share is a link in the second.
    fn classic() -> Saved {
        let mut saved = Saved(tar::Builder::new(Vec::new()));
        saved.file("aa/layer.tar", b"base");
        saved.file("bb/layer.tar", b"code");
        saved.link("cc/layer.tar", "../aa/layer.tar");
        saved.file("one.json", b"{\"one\":1}");
        saved.file("two.json", b"{\"two\":2}");
        let list = br#"[
            {"Config":"one.json","RepoTags":["epsilon/shop/one:1"],"Layers":["aa/layer.tar","bb/layer.tar"]},
            {"Config":"two.json","RepoTags":["epsilon/shop/two:1","two:1"],"Layers":["cc/layer.tar"]}]"#;
        saved.file("manifest.json", list);
        saved
    }

    #[test]
    fn a_layer_that_images_share_is_there_once() {
        let files = classic().layout(&["epsilon/shop/one:1", "epsilon/shop/two:1"]).unwrap();
        let count = |content: &[u8]| files.values().filter(|file| *file == content).count();
        assert_eq!((count(b"base"), count(b"code")), (1, 1));
        let list: Vec<Listed> = serde_json::from_slice(&files["manifest.json"]).unwrap();
        assert_eq!(list[0].layers[0], list[1].layers[0]);
        assert_eq!(files[&list[0].layers[0]], b"base");
        assert_eq!(files[&list[1].config], b"{\"two\":2}");
        let index: serde_json::Value = serde_json::from_slice(&files["index.json"]).unwrap();
        for manifest in index["manifests"].as_array().unwrap() {
            let path = manifest["digest"].as_str().unwrap().replacen(':', "/", 1);
            let manifest = &files[&format!("blobs/{path}")];
            let manifest: serde_json::Value = serde_json::from_slice(manifest).unwrap();
            let packing = manifest["layers"][0]["mediaType"].as_str().unwrap();
            assert_eq!(packing, "application/vnd.oci.image.layer.v1.tar");
        }
    }

    #[test]
    fn only_what_is_wanted_is_taken() {
        let files = classic().layout(&["epsilon/shop/two:1"]).unwrap();
        assert!(!files.values().any(|file| file == b"code"));
        let err = classic().layout(&["epsilon/shop/three:1"]).unwrap_err();
        assert!(err.message.contains("epsilon/shop/three:1"), "{}", err.message);
    }

    /// As an engine with containerd's image store writes it.
    #[test]
    fn compressed_layers_stay_as_they_are() {
        let mut saved = Saved(tar::Builder::new(Vec::new()));
        saved.file("blobs/sha256/aa", b"\x1f\x8b packed");
        saved.file("blobs/sha256/bb", b"{}");
        let list =
            br#"[{"Config":"blobs/sha256/bb","RepoTags":["a:1"],"Layers":["blobs/sha256/aa"]}]"#;
        saved.file("manifest.json", list);
        let files = saved.layout(&["a:1"]).unwrap();
        assert!(files.values().any(|file| file == b"\x1f\x8b packed"));
        let text = |file: &Vec<u8>| String::from_utf8_lossy(file).into_owned();
        assert!(files.values().any(|file| text(file).contains("layer.v1.tar+gzip")));
    }

    #[test]
    fn links_that_lead_nowhere_are_an_error() {
        let mut saved = Saved(tar::Builder::new(Vec::new()));
        saved.link("aa/layer.tar", "../bb/layer.tar");
        saved.link("bb/layer.tar", "../aa/layer.tar");
        saved.file("one.json", b"{}");
        saved.file(
            "manifest.json",
            br#"[{"Config":"one.json","RepoTags":["a:1"],"Layers":["aa/layer.tar"]}]"#,
        );
        assert!(saved.layout(&["a:1"]).is_err());
    }
}
