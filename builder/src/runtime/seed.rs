//! A fresh root file system of Debian or Ubuntu as an image, and the scripts that a language's recipe
//! runs in it to complete a base.

use super::{RuntimeContext, mirror::Mirror};
use crate::{
    cache::WorkDir,
    engine::container::{Bind, Container, Exit, Rights, Task},
    error::{self, Hint},
};
use epsilon_api::build::BuildError;
use std::{fs, sync::Arc};

/// The root file system as an image, from which a recipe makes the base.
#[derive(Clone, Copy)]
pub(crate) struct Seed<'a> {
    pub(crate) context: &'a RuntimeContext<'a>,
    pub(crate) work: &'a Arc<WorkDir>,
    pub(super) image: &'a str,
    pub(super) mirror: &'a Mirror,
}

impl Seed<'_> {
    /// A file with the machine's own mirror, to be copied to `/etc/apt/sources.list`.
    pub(crate) fn sources(&self) -> Result<Bind, BuildError> {
        let host = self.work.path().join("sources.list");
        let text = self.mirror.lines.join("\n") + "\n";
        fs::write(&host, text).map_err(|err| error::file("writing the base's mirror", &err))?;
        Ok(Bind { host, inside: "/run/epsilon/sources.list", writable: false })
    }

    /// Runs a script as root in a container of the seed; returns the container after its end.
    pub(crate) async fn run(
        &self,
        script: &str,
        mut env: Vec<String>,
        mut mounts: Vec<Bind>,
    ) -> Result<Container, BuildError> {
        let Self { context, .. } = self;
        env.extend(context.egress_env.env());
        mounts.extend(context.egress_env.mounts());
        let task = Task {
            purpose: "base",
            image: self.image.to_owned(),
            command: ["sh", "-euc", script].map(str::to_owned).to_vec(),
            env,
            mounts,
            workdir: "/",
            rights: Rights::Install,
            network: context.egress_env.network(),
            limits: context.limits,
            largest_file: None,
        };
        let work = Arc::clone(self.work);
        let container = context.engine.create(&task, Some(work as _)).await?;
        let ended = container.run(|line| context.last_line.set(line)).await?;
        match ended.exit {
            Exit::Code(0) => Ok(container),
            Exit::Code(_) | Exit::OutOfMemory | Exit::TimedOut => {
                let says = ended.tail.join("\n");
                Err(error::runtime_failed(format!("the runtime base could not be made:\n{says}"))
                    .hint("the distribution's mirror and Python's package index must be reachable"))
            }
        }
    }
}
