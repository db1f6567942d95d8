//! Where a runtime base can come from, and the name that the runtime on top of it gets: it covers
//! everything that determines the image.

use super::{
    packages,
    recipe::{Program, Recipe},
};
use crate::{
    config::Config,
    engine::{Engine, EngineImage},
    image::name::Name,
    source::Hasher,
};
use epsilon_api::build::BuildError;
use std::fmt;

/// Version of the composition; part of the key. Raised when the parts are put together differently.
const VERSION: &str = "1";

/// Origin of a base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The operator's image: its name, and its current id.
    Operator { name: String, id: String },
    /// This image of the public registry.
    PublicRegistry(&'static str),
    /// Packages of this machine's distribution.
    Packages { release: Option<String> },
}

impl Origin {
    /// Possible origins of a base, best first, as far as they are known without a network.
    pub(super) async fn possible(
        recipe: &dyn Recipe,
        engine: &Engine,
        config: &Config,
    ) -> Result<Vec<Self>, BuildError> {
        if let Some(name) = recipe.operators(config) {
            let found = engine.image(name).await?;
            let origin = found.map(|image| Self::Operator { name: name.to_owned(), id: image.id });
            return Ok(origin.into_iter().collect());
        }
        let mut origins = vec![Self::Packages { release: packages::release() }];
        if !config.registry_wait.is_zero() {
            origins.insert(0, Self::PublicRegistry(recipe.facts().public_image));
        }
        Ok(origins)
    }

    /// Text that identifies what the base is made of.
    pub(super) fn text(&self, recipe: &dyn Recipe) -> String {
        match self {
            Self::Operator { name: _, id } => format!("image {id}"),
            // `hub` is a part of existing tags.
            Self::PublicRegistry(image) => format!("hub {image}"),
            Self::Packages { release } => {
                let release = release.as_deref().unwrap_or_default();
                format!("{release} {}", recipe.packages_text())
            }
        }
    }

    /// What the runtime on top of it is called.
    pub(super) fn runtime(&self, recipe: &dyn Recipe) -> Name {
        let key = Hasher::default()
            .part(VERSION.as_bytes())
            .part(std::env::consts::ARCH.as_bytes())
            .part(self.text(recipe).as_bytes())
            .part(recipe.digest(Program::Wrapper).to_string().as_bytes())
            .finish();
        Name::runtime(recipe.facts().name, &key.to_string()[..12])
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator { name, id: _ } => write!(f, "the operator's `{name}`"),
            Self::PublicRegistry(image) => write!(f, "`{image}` of the public registry"),
            Self::Packages { release } => {
                let release = release.as_deref().unwrap_or("this machine's release");
                write!(f, "{release} from this machine's own packages")
            }
        }
    }
}

/// What the inspector's image on top of this runtime is called.
pub(super) fn inspector(recipe: &dyn Recipe, runtime: &EngineImage) -> Name {
    let key = Hasher::default()
        .part(VERSION.as_bytes())
        .part(runtime.id.as_bytes())
        .part(recipe.digest(Program::Inspector).to_string().as_bytes())
        .finish();
    Name::inspector(recipe.facts().name, &key.to_string()[..12])
}

/// The images in the engine that a start with these settings would not have to make: the operator's
/// image, the best runtime, its inspector.
pub(crate) async fn found(
    recipe: &dyn Recipe,
    engine: &Engine,
    config: &Config,
) -> Result<Vec<String>, BuildError> {
    let mut found = Vec::new();
    for origin in Origin::possible(recipe, engine, config).await? {
        let name = origin.runtime(recipe).to_string();
        let Some(image) = engine.image(&name).await? else { continue };
        found.push(name);
        let inspector = inspector(recipe, &image).to_string();
        if engine.image(&inspector).await?.is_some() {
            found.push(inspector);
        }
        if let Origin::Operator { name, .. } = origin {
            found.push(name);
        }
        break;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language;
    use epsilon_api::function::Runtime;

    #[test]
    fn the_key_follows_what_the_runtime_is_made_of() {
        let recipe = language::of(Runtime::Node).unwrap().recipe();
        let operator = |id: &str| Origin::Operator { name: "mine:1".into(), id: id.into() };
        let packages = |release: &str| Origin::Packages { release: Some(release.into()) };
        let origins = [
            operator("sha256:1"),
            operator("sha256:2"),
            Origin::PublicRegistry("node:24"),
            packages("bookworm"),
            packages("noble"),
        ];
        let keys = origins.map(|origin| origin.runtime(recipe).tag);
        for (at, key) in keys.iter().enumerate() {
            assert_eq!(key.len(), 12);
            assert!(!keys[..at].contains(key));
        }
        assert_eq!(packages("noble").runtime(recipe).tag, keys[4]);
    }
}
