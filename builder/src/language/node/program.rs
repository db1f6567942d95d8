//! JavaScript embedded in this binary, and the layer made of it and its packages: the Node wrapper
//! for the runtime, and the module graph reader for the inspector's image. A layer is the same for
//! every base.

use super::{npm_env::NpmEnv, wrapper};
use crate::{
    blocking,
    cache::{WorkDir, container_user, set_owner},
    engine::container::{Bind, Exit, Rights, Task},
    error::{self, Hint},
    image::{Layer, tree},
    runtime::{RuntimeContext, recipe::Program},
    source::{ContentDigest, Hasher},
};
use epsilon_api::build::BuildError;
use std::{fs, io, path::Path, sync::Arc};

/// Checks the base and installs the packages; their install scripts are not run.
const INSTALL: &str = include_str!("program.sh");

/// The files of an embedded program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Files {
    name: &'static str,
    /// Paths and contents, sorted by path.
    files: &'static [(&'static str, &'static [u8])],
    /// Its folder in an image: relative to the root, and absolute.
    path: &'static str,
    inside: &'static str,
    /// Additional folders of the layer.
    folders: &'static [&'static str],
}

const WRAPPER: Files = Files {
    name: "wrapper",
    files: wrapper::FILES,
    path: "epsilon/wrapper",
    inside: "/epsilon/wrapper",
    folders: &["app"],
};

/// Determines which files each export reaches.
const GRAPH: Files = Files {
    name: "graph",
    files: include!(concat!(env!("OUT_DIR"), "/graph_files.rs")),
    path: "epsilon/graph",
    inside: "/epsilon/graph",
    folders: &[],
};

/// The files of a program.
pub(super) fn files(program: Program) -> Files {
    match program {
        Program::Wrapper => WRAPPER,
        Program::Inspector => GRAPH,
    }
}

impl Files {
    /// Digest of the files and of how their packages are installed.
    pub(super) fn digest(self) -> ContentDigest {
        let part = |hasher: Hasher, (name, content): &(&str, &[u8])| {
            hasher.part(name.as_bytes()).part(content)
        };
        self.files.iter().fold(Hasher::default().part(INSTALL.as_bytes()), part).finish()
    }
}

/// Makes the layer in a container of `base`.
pub(super) async fn layer(
    program: Files,
    context: &RuntimeContext<'_>,
    base: &str,
    work: &Arc<WorkDir>,
) -> Result<Layer, BuildError> {
    let owner @ (uid, gid) = container_user();
    let folder = work.folder(program.name, owner)?;
    write(program, &folder, owner).map_err(|err| error::file("unpacking a program", &err))?;
    let npm_env = NpmEnv::new(context.egress_env.clone(), context.config.npmrc.clone());
    let mut env = npm_env.egress().env();
    env.extend(npm_env.env(&npm_env.operator()?));
    let mut mounts = npm_env.egress().mounts();
    mounts.extend(npm_env.npmrc(work)?);
    let cache = context.cache.npm(ContentDigest::of(b"runtime"))?;
    env.extend(["HOME=/tmp".to_owned(), "npm_config_cache=/npm".to_owned()]);
    mounts.push(Bind { host: folder.clone(), inside: program.inside, writable: true });
    mounts.push(Bind { host: cache.folder(), inside: "/npm", writable: true });
    let task = Task {
        purpose: program.name,
        image: base.to_owned(),
        command: ["sh", "-euc", INSTALL].map(str::to_owned).to_vec(),
        env,
        mounts,
        workdir: program.inside,
        rights: Rights::None { uid, gid },
        network: context.egress_env.network(),
        limits: context.limits,
        largest_file: None,
    };
    let container = context.engine.create(&task, Some(Arc::clone(work) as _)).await?;
    let ended = container.run(|line| context.last_line.set(line)).await?;
    if ended.exit != Exit::Code(0) {
        let says = ended.tail.join("\n");
        return Err(error::runtime_failed(format!("the {} could not be installed into `{base}`:\n{says}", program.name))
            .hint("the base needs `sh`, `npm` and `node` 24 or later, and npm's registry must be reachable"));
    }
    let to = work.path().join(format!("{}.tar", program.name));
    blocking::run("writing a layer", move || {
        tree::folder(&folder, program.path, program.folders, &to)
    })
    .await
}

fn write(program: Files, folder: &Path, owner: (u32, u32)) -> io::Result<()> {
    for (name, content) in program.files {
        let path = folder.join(name);
        let mut parent = folder.to_owned();
        for part in Path::new(name).parent().into_iter().flat_map(Path::iter) {
            parent.push(part);
            fs::create_dir_all(&parent)?;
            set_owner(&parent, owner)?;
        }
        fs::write(&path, content)?;
        set_owner(&path, owner)?;
    }
    Ok(())
}
