//! Which images of an unpacked layout are loaded.
//!
//! A layout may come from anywhere, and an engine that loads it moves all names in it to the loaded
//! images. So its two lists are written again, with the wanted names only.

use crate::{
    engine::Part,
    image::archive::{Listed, header, padding},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

/// Largest list of a layout's images.
const LARGEST_LIST: u64 = 64 << 20;
/// The annotations in `index.json` that engines read an image's name from.
const NAME_ANNOTATIONS: [&str; 2] =
    ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// The images of an unpacked layout that are to be loaded.
#[derive(Debug)]
pub struct LayoutSelection {
    folder: PathBuf,
    index: Vec<u8>,
    list: Vec<u8>,
}

/// Why a layout is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// One of its lists is missing, too large or not valid.
    #[error("its list of images `{0}` cannot be read")]
    List(&'static str, #[source] io::Error),
    /// It has a name that the backup's manifest does not list.
    #[error("it would give an image the name `{}`, which is not on its list", .0.escape_default())]
    Name(String),
}

/// The part of `index.json` that is taken over. Written again, because engines also read keys that
/// differ in case.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: String,
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl LayoutSelection {
    /// Selects the images with `wanted` names from a layout whose names have to be `listed`.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn new(
        folder: &Path,
        listed: &BTreeSet<&str>,
        wanted: &BTreeSet<&str>,
    ) -> Result<Self, Refused> {
        const INDEX: &str = "index.json";
        const LIST: &str = "manifest.json";
        let mut index: Index = text(folder, INDEX)?;
        let mut list: Vec<Listed> = text(folder, LIST)?;
        let tags = list.iter().flat_map(|image| image.repo_tags.iter().flatten());
        for image in &mut index.manifests {
            image.annotations.retain(|key, _| NAME_ANNOTATIONS.contains(&key.as_str()));
        }
        let names = index.manifests.iter().flat_map(|image| image.annotations.values());
        if let Some(stray) = tags.chain(names).find(|name| !listed.contains(name.as_str())) {
            return Err(Refused::Name(stray.clone()));
        }
        let is_wanted = |name: &String| wanted.contains(name.as_str());
        for image in &mut index.manifests {
            image.annotations.retain(|_, name| is_wanted(name));
        }
        index.manifests.retain(|image| !image.annotations.is_empty());
        for image in &mut list {
            image.repo_tags.get_or_insert_default().retain(is_wanted);
        }
        list.retain(|image| image.repo_tags.as_ref().is_some_and(|tags| !tags.is_empty()));
        let index = serde_json::to_vec(&index).map_err(|err| Refused::List(INDEX, err.into()))?;
        let list = serde_json::to_vec(&list).map_err(|err| Refused::List(LIST, err.into()))?;
        Ok(Self { folder: folder.to_owned(), index, list })
    }

    /// The archive that engines load. Of the folder's files it has only those that the lists can
    /// refer to.
    pub(super) fn parts(self) -> io::Result<Vec<Part>> {
        let mut found = Vec::new();
        collect(&self.folder, Path::new("blobs"), &mut found)?;
        found.push("oci-layout".into());
        found.sort();
        let mut parts = Vec::with_capacity(found.len() * 3 + 7);
        for (name, content) in [("index.json", self.index), ("manifest.json", self.list)] {
            let bytes = content.len() as u64;
            parts.push(Part::Bytes(header(name, bytes)?));
            parts.push(Part::Bytes(content.into()));
            parts.push(Part::Bytes(padding(bytes)));
        }
        for path in found {
            let file = self.folder.join(&path);
            let bytes = fs::metadata(&file)?.len();
            parts.push(Part::Bytes(header(&path.to_string_lossy(), bytes)?));
            parts.push(Part::File(file));
            parts.push(Part::Bytes(padding(bytes)));
        }
        parts.push(Part::Bytes(bytes::Bytes::from_static(&[0; 1024])));
        Ok(parts)
    }
}

fn text<T: serde::de::DeserializeOwned>(folder: &Path, name: &'static str) -> Result<T, Refused> {
    let read = || {
        let file = folder.join(name);
        if fs::metadata(&file)?.len() > LARGEST_LIST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too large"));
        }
        Ok(serde_json::from_slice(&fs::read(file)?)?)
    };
    read().map_err(|err| Refused::List(name, err))
}

fn collect(root: &Path, below: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, &path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::files;
    use futures_util::TryStreamExt;
    use std::io::Read as _;

    const NAMES: [&str; 2] = ["epsilon/shop/one:1", "epsilon/shop/two:1"];

    /// A layout with `tags` in `manifest.json` and `names` in `index.json`.
    fn unpacked(tags: &[&str], names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, content: String| fs::write(dir.path().join(name), content).unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        put("blobs/sha256/aa", "layer".into());
        put("oci-layout", "{}".into());
        put("repositories", r#"{"nginx":{"latest":"aa"}}"#.into());
        let tags = tags.iter().map(|tag| {
            format!(
                r#"{{"Config":"blobs/sha256/aa","RepoTags":["{tag}"],"Layers":[],"repotags":["x:1"]}}"#
            )
        });
        put("manifest.json", format!("[{}]", tags.collect::<Vec<_>>().join(",")));
        let names = names.iter().map(|name| {
            format!(r#"{{"mediaType":"m","digest":"sha256:aa","size":5,"annotations":{{{name}}}}}"#)
        });
        let names = names.collect::<Vec<_>>().join(",");
        put(
            "index.json",
            format!(r#"{{"schemaVersion":2,"mediaType":"i","manifests":[{names}]}}"#),
        );
        dir
    }

    fn select(dir: &tempfile::TempDir, wanted: &[&str]) -> Result<LayoutSelection, Refused> {
        let wanted = wanted.iter().copied().collect();
        LayoutSelection::new(dir.path(), &NAMES.into_iter().collect(), &wanted)
    }

    #[tokio::test]
    async fn only_names_that_are_wanted_reach_the_engine() {
        let names = NAMES.map(|name| {
            format!(r#""{}":"{name}","{}":"{name}""#, NAME_ANNOTATIONS[0], NAME_ANNOTATIONS[1])
        });
        let dir = unpacked(&NAMES, &names.each_ref().map(String::as_str));
        let parts = select(&dir, &NAMES[1..]).unwrap().parts().unwrap();
        let sent: Vec<bytes::Bytes> = files(parts).try_collect().await.unwrap();
        let mut seen = BTreeMap::new();
        for entry in tar::Archive::new(&sent.concat()[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            seen.insert(entry.path().unwrap().to_string_lossy().into_owned(), content);
        }
        let paths: Vec<_> = seen.keys().map(String::as_str).collect();
        assert_eq!(paths, ["blobs/sha256/aa", "index.json", "manifest.json", "oci-layout"]);
        for list in ["index.json", "manifest.json"] {
            let list = &seen[list];
            assert!(list.contains(NAMES[1]) && !list.contains(NAMES[0]), "{list}");
            assert!(!list.contains("x:1"), "engines would read it too: {list}");
        }
    }

    #[test]
    fn a_name_that_is_not_listed_is_refused_everywhere() {
        let named = |key: &str, name: &str| format!(r#""{key}":"{name}""#);
        let good = named(NAME_ANNOTATIONS[0], NAMES[0]);
        assert!(select(&unpacked(&NAMES, &[&good]), &NAMES).is_ok());
        for (tags, name) in [
            (&["nginx:latest"][..], good),
            (&NAMES, named(NAME_ANNOTATIONS[0], "nginx:latest")),
            (&NAMES, named(NAME_ANNOTATIONS[1], "nginx:latest")),
        ] {
            let refused = select(&unpacked(tags, &[&name]), &[]).unwrap_err().to_string();
            assert!(refused.contains("nginx:latest"), "{refused}");
        }
        let dir = unpacked(&NAMES, &[]);
        fs::remove_file(dir.path().join("manifest.json")).unwrap();
        assert!(matches!(select(&dir, &NAMES), Err(Refused::List("manifest.json", _))));
    }
}
