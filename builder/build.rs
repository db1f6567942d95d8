//! Embeds the JavaScript that builds need into the binary, so that a builder needs no other files:
//! generates a table of the files of the Node wrapper (`wrapper-image/node`) and of the module
//! graph reader (`src/language/node/graph`), without their tests and installed packages, for
//! `wrapper.rs` and `program.rs` in `src/language/node`.

use std::{
    env,
    error::Error,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

/// Generated tables and their source folders.
const TABLES: [(&str, &str); 2] =
    [("wrapper_files.rs", "../wrapper-image/node"), ("graph_files.rs", "src/language/node/graph")];

/// Files and folders that an image does not need.
const LEFT_OUT: [&str; 4] = ["node_modules", "test", "bench.js", "bench-start.js"];

fn main() -> Result<(), Box<dyn Error>> {
    for (table, folder) in TABLES {
        write_table(table, &Path::new(&env::var("CARGO_MANIFEST_DIR")?).join(folder))?;
    }
    Ok(())
}

fn write_table(name: &str, root: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    collect(root, "", &mut files)?;
    files.sort();
    let mut table = String::from("&[\n");
    for (name, path) in files {
        let path = path.canonicalize()?;
        writeln!(table, "    ({name:?}, include_bytes!({:?})),", path.display().to_string())?;
    }
    table.push_str("]\n");
    fs::write(Path::new(&env::var("OUT_DIR")?).join(name), table)?;
    Ok(())
}

fn collect(
    folder: &Path,
    prefix: &str,
    files: &mut Vec<(String, PathBuf)>,
) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().into_string().map_err(|_| "a file's name is not UTF-8")?;
        if LEFT_OUT.contains(&name.as_str()) || name.starts_with('.') || name.ends_with(".md") {
            continue;
        }
        let path = format!("{prefix}{name}");
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &format!("{path}/"), files)?;
        } else {
            files.push((path, entry.path()));
        }
    }
    Ok(())
}
