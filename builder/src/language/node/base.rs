//! The runtime base of Node: which images have Node, and how one is made from packages.
//!
//! ```text
//! seed image ─▶ container: pip fetches Node ─▶ folder
//!       └─────▶ container: base.sh installs it, updates, trims ─▶ base
//! ```

use super::program;
use crate::{
    cache::WorkDir,
    config::Config,
    engine::container::{Bind, Container},
    image::{Launch, Layer, user::USER},
    runtime::{
        RuntimeContext,
        recipe::{Facts, Program, Recipe},
        seed::Seed,
        step::Needs,
    },
    source::ContentDigest,
};
use epsilon_api::build::BuildError;
use futures_util::future::BoxFuture;
use std::{path::Path, sync::Arc};

/// Major version of Node for functions.
const NODE_MAJOR: u32 = 24;
const FETCH_NODE: &str = include_str!("fetch.sh");
const MAKE_BASE: &str = include_str!("base.sh");

const FACTS: Facts = Facts {
    name: "node",
    title: "Node 24",
    public_image: "node:24-bookworm-slim",
    setting: "builder.runtime_image",
    needs: "`sh`, `npm` and `node` 24",
    launch: Launch {
        entrypoint: &["node", "/epsilon/wrapper/main.js"],
        env: &["NODE_ENV=production"],
    },
};

/// The recipe of Node's base.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeBase;

impl Recipe for NodeBase {
    fn facts(&self) -> &'static Facts {
        &FACTS
    }

    fn operators<'a>(&self, config: &'a Config) -> Option<&'a str> {
        config.runtime_image.as_deref()
    }

    fn packages_text(&self) -> String {
        format!("packages {NODE_MAJOR}\n{FETCH_NODE}\n{MAKE_BASE}")
    }

    fn complete<'a>(&'a self, seed: Seed<'a>) -> BoxFuture<'a, Result<Container, BuildError>> {
        Box::pin(complete(seed))
    }

    fn digest(&self, program: Program) -> ContentDigest {
        program::files(program).digest()
    }

    fn layer<'a>(
        &'a self,
        program: Program,
        context: &'a RuntimeContext<'a>,
        base: &'a str,
        work: &'a Arc<WorkDir>,
    ) -> BoxFuture<'a, Result<Layer, BuildError>> {
        Box::pin(program::layer(program::files(program), context, base, work))
    }
}

async fn complete(seed: Seed<'_>) -> Result<Container, BuildError> {
    let node = seed.work.folder("node", (0, 0))?;
    let fetched = fetch_node(&seed, &node);
    seed.context.step("Node 24 and npm", Needs::PackageIndex, fetched).await?;
    let base = finish(&seed, &node);
    let doing = "security updates, Node put in, the rest trimmed";
    seed.context.step(doing, Needs::Mirror, base).await
}

async fn fetch_node(seed: &Seed<'_>, node: &Path) -> Result<(), BuildError> {
    let mounts = vec![Bind { host: node.to_owned(), inside: "/out", writable: true }];
    seed.run(FETCH_NODE, vec![format!("NODE_MAJOR={NODE_MAJOR}")], mounts).await.map(drop)
}

async fn finish(seed: &Seed<'_>, node: &Path) -> Result<Container, BuildError> {
    let node = Bind { host: node.to_owned(), inside: "/node", writable: false };
    let mounts = vec![node, seed.sources()?];
    seed.run(MAKE_BASE, vec![format!("USER_ID={USER}")], mounts).await
}
