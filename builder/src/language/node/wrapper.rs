//! The files of the Node wrapper, embedded in this binary (`build.rs`): `runtime` puts them into
//! images, `epsilon dev` into a folder of the developer's machine. Their npm packages are not
//! included.

/// Paths and contents, sorted by path.
pub const FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/wrapper_files.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wrapper_is_in_the_binary_without_its_tests() {
        let has = |name: &str| FILES.iter().any(|(file, _)| *file == name);
        assert!(has("package.json") && has("package-lock.json"));
        assert!(FILES.is_sorted());
        assert!(
            !FILES.iter().any(|(name, _)| name.contains("test/") || name.contains("node_modules"))
        );
    }
}
