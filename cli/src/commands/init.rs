//! `epsilon init [DIR]`: writes a small working project. Never overwrites anything.

use crate::{failure::Failure, globals::Globals, output};
use clap::{Args, ValueEnum};
use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// The project's folder; created if missing
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// What runs the code
    #[arg(long, value_enum, default_value_t = Runtime::Node)]
    runtime: Runtime,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Runtime {
    /// JavaScript or TypeScript on Node 24
    Node,
    /// Not supported yet
    Python,
    /// Any image or Dockerfile that listens on $PORT
    Container,
}

type Template = &'static [(&'static str, &'static str)];

const NODE: Template = &[
    ("epsilon.yaml", include_str!("../../templates/node/epsilon.yaml")),
    ("index.js", include_str!("../../templates/node/index.js")),
    ("package.json", include_str!("../../templates/node/package.json")),
];

const CONTAINER: Template = &[
    ("epsilon.yaml", include_str!("../../templates/container/epsilon.yaml")),
    ("Dockerfile", include_str!("../../templates/container/Dockerfile")),
    ("server.js", include_str!("../../templates/container/server.js")),
];

impl Init {
    pub(crate) fn run(self, globals: &Globals) -> Result<(), Failure> {
        let template = match self.runtime {
            Runtime::Node => NODE,
            Runtime::Container => CONTAINER,
            Runtime::Python => {
                return Err(Failure::usage("the runtime `python` is not supported yet").hint(
                    "use `--runtime node`, or `--runtime container` with a Python image of your own",
                ));
            }
        };
        let existing =
            template.iter().find(|(name, _)| self.dir.join(name).symlink_metadata().is_ok());
        if let Some((name, _)) = existing {
            let path = self.dir.join(name);
            let refused = Failure::usage(format!("`{}` already exists", path.display()));
            return Err(refused.hint(if is_project(&self.dir) {
                format!(
                    "this is a project already: `epsilon deploy {}` takes it as it is; for a new one name another folder",
                    self.dir.display()
                )
            } else {
                "name another folder: `epsilon init DIR`".to_owned()
            }));
        }
        fs::create_dir_all(&self.dir).map_err(|err| unwritable(&self.dir, &err))?;
        let mut written = Vec::new();
        for (name, text) in template {
            let path = self.dir.join(name);
            // `create_new`: a file that appeared meanwhile is not overwritten either.
            let file = File::create_new(&path).and_then(|mut file| file.write_all(text.as_bytes()));
            file.map_err(|err| unwritable(&path, &err))?;
            written.push(path.display().to_string());
        }
        if globals.json {
            return output::json(serde_json::json!({ "written": written }));
        }
        for path in written {
            output::line(&format!("wrote {path}"))?;
        }
        let dir = self.dir.display();
        output::line(&format!("\nnext: `epsilon deploy {dir}`, then `epsilon invoke hello`"))
    }
}

/// Whether the folder is a project that can be deployed as it is.
fn is_project(dir: &Path) -> bool {
    ["package.json", "epsilon.yaml", "index.js"].iter().any(|name| dir.join(name).is_file())
}

fn unwritable(path: &Path, err: &std::io::Error) -> Failure {
    Failure::new("UNWRITABLE", format!("`{}` cannot be written", path.display())).with_cause(err)
}
