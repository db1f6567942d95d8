//! Images in the format of `docker save`, for `docker load`: configurations, a list, and layers.
//! Layers that the engine has may be left out; see `publish/local.rs` for when that works.

use super::name::Name;
use super::{Image, Layer};
use crate::engine::Part;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, io};
use tar::{EntryType, Header};

/// One image of the list `manifest.json`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Listed {
    pub(crate) config: String,
    pub(crate) repo_tags: Option<Vec<String>>,
    pub(crate) layers: Vec<String>,
}

/// The pieces of an archive with these images, each under its name, and with these layers in it.
pub(crate) fn parts(images: &[(Image, Name)], layers: &[Layer]) -> io::Result<Vec<Part>> {
    let mut parts = Vec::new();
    let mut list = Vec::new();
    for (image, name) in images {
        let config = format!("{}.json", hex(&image.id()));
        list.push(Listed {
            config: config.clone(),
            repo_tags: Some(vec![name.to_string()]),
            layers: image.diff_ids.iter().map(|id| file_of(id)).collect(),
        });
        push(&mut parts, &config, Bytes::from(image.config.clone()))?;
    }
    // Functions often share their code layer: each layer once.
    let distinct: BTreeMap<_, _> = layers.iter().map(|layer| (&layer.diff_id, layer)).collect();
    for layer in distinct.into_values() {
        parts.push(Part::Bytes(header(&file_of(&layer.diff_id), layer.bytes)?));
        parts.push(Part::File(layer.tar.clone()));
        parts.push(Part::Bytes(padding(layer.bytes)));
    }
    push(&mut parts, "manifest.json", serde_json::to_vec(&list)?.into())?;
    parts.push(Part::Bytes(Bytes::from_static(&[0; 1024])));
    Ok(parts)
}

fn file_of(diff_id: &str) -> String {
    format!("{}/layer.tar", hex(diff_id))
}

fn hex(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}

fn push(parts: &mut Vec<Part>, name: &str, content: Bytes) -> io::Result<()> {
    let size = content.len() as u64;
    parts.push(Part::Bytes(header(name, size)?));
    parts.push(Part::Bytes(content));
    parts.push(Part::Bytes(padding(size)));
    Ok(())
}

pub(crate) fn header(name: &str, bytes: u64) -> io::Result<Bytes> {
    let mut header = Header::new_gnu();
    header.set_path(name)?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(bytes);
    header.set_mtime(0);
    header.set_cksum();
    Ok(Bytes::copy_from_slice(header.as_bytes()))
}

/// Zeroes up to the next block of 512.
pub(crate) fn padding(bytes: u64) -> Bytes {
    const ZEROES: &[u8] = &[0; 512];
    let missing = (512 - bytes % 512) % 512;
    Bytes::from_static(ZEROES).slice(..usize::try_from(missing).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cache::Held, engine::files};
    use futures_util::TryStreamExt;
    use std::io::Read;

    #[tokio::test]
    async fn an_archive_reads_back_as_a_tar() {
        let dir = tempfile::tempdir().unwrap();
        let tar = dir.path().join("layer");
        std::fs::write(&tar, [7; 700]).unwrap();
        let layer = Layer { diff_id: "sha256:0a".into(), tar, bytes: 700, held: Held::default() };
        let image = Image {
            config: b"{}".to_vec(),
            diff_ids: vec!["sha256:09".into(), "sha256:0a".into()],
        };
        let images = [(image, Name::runtime("node", "1"))];
        let parts = parts(&images, &[layer.clone(), layer]).unwrap();
        let bytes: Vec<Bytes> = files(parts).try_collect().await.unwrap();
        let bytes = bytes.concat();
        assert_eq!(bytes.len() % 512, 0);
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut seen = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            seen.insert(entry.path().unwrap().to_string_lossy().into_owned(), content);
        }
        assert_eq!(seen.len(), 3);
        assert_eq!(seen["0a/layer.tar"], [7; 700]);
        let list: Vec<Listed> = serde_json::from_slice(&seen["manifest.json"]).unwrap();
        assert_eq!(list[0].layers, ["09/layer.tar", "0a/layer.tar"]);
        assert!(seen.contains_key(&list[0].config));
    }
}
