//! The Node wrapper: its files, which are part of this binary, and the layer that they become together
//! with the packages that they need. The layer is the same for every base.

use super::Workshop;
use crate::{
    blocking,
    cache::{WorkDir, container_user, give},
    engine::container::{Bind, Exit, Rights, Task},
    error::{self, Hint},
    image::{Layer, tree},
    source::{ContentDigest, Hasher},
    wrapper::FILES,
};
use epsilon_api::build::BuildError;
use std::{fs, io, path::Path, sync::Arc};

/// Checks the base and installs the wrapper's packages; the scripts of packages are not run.
const INSTALL: &str = include_str!("wrapper.sh");

/// Of all that the wrapper is made of.
pub(super) fn digest() -> ContentDigest {
    let part = |hasher: Hasher, (name, content): &(&str, &[u8])| {
        hasher.part(name.as_bytes()).part(content)
    };
    FILES.iter().fold(Hasher::default().part(INSTALL.as_bytes()), part).finish()
}

/// Makes the layer with the help of a container of `base`.
pub(super) async fn layer(
    workshop: &Workshop<'_>,
    base: &str,
    work: &Arc<WorkDir>,
) -> Result<Layer, BuildError> {
    let owner @ (uid, gid) = container_user();
    let folder = work.folder("wrapper", owner)?;
    write(&folder, owner).map_err(|err| error::file("unpacking the wrapper", &err))?;
    let mut env = workshop.outside.env();
    let mut mounts = workshop.outside.mounts();
    if let Some((variable, bind)) = workshop.outside.npmrc() {
        env.push(variable);
        mounts.push(bind);
    }
    env.extend(["HOME=/tmp".to_owned(), "npm_config_cache=/npm".to_owned()]);
    mounts.push(Bind { host: folder.clone(), inside: "/epsilon/wrapper", writable: true });
    mounts.push(Bind { host: workshop.cache.npm(), inside: "/npm", writable: true });
    let task = Task {
        purpose: "wrapper",
        image: base.to_owned(),
        command: ["sh", "-euc", INSTALL].map(str::to_owned).to_vec(),
        env,
        mounts,
        workdir: "/epsilon/wrapper",
        rights: Rights::None { uid, gid },
        network: workshop.outside.network(),
        limits: workshop.limits,
        largest_file: None,
    };
    let container = workshop.engine.create(&task, Some(Arc::clone(work) as _)).await?;
    let ended = container.run(|_| {}).await?;
    if ended.exit != Exit::Code(0) {
        let says = ended.tail.join("\n");
        return Err(error::runtime_failed(format!("the wrapper does not install into `{base}`:\n{says}"))
            .hint("the base needs `sh`, `npm` and `node` 24 or later, and npm's registry has to be reached"));
    }
    let to = work.path().join("wrapper.tar");
    blocking::run("writing a layer", move || {
        tree::folder(&folder, "epsilon/wrapper", &["app"], &to)
    })
    .await
}

fn write(folder: &Path, owner: (u32, u32)) -> io::Result<()> {
    for (name, content) in FILES {
        let path = folder.join(name);
        let mut parent = folder.to_owned();
        for part in Path::new(name).parent().into_iter().flat_map(Path::iter) {
            parent.push(part);
            fs::create_dir_all(&parent)?;
            give(&parent, owner)?;
        }
        fs::write(&path, content)?;
        give(&path, owner)?;
    }
    Ok(())
}
