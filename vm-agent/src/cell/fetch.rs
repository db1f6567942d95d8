//! Prewarm of a version without a start: pulls base and layers to this VM where a cell will serve
//! it, its image otherwise.

use super::Cells;
use epsilon_api::{chain::Chain, function::Version};

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// # Errors
/// Why the version cannot be pulled.
pub(crate) async fn fetch(cells: &Cells, version: &Version) -> Result<(), Cause> {
    let context = &cells.context;
    cells.note_version(version);
    if let Some(kind) = cells.kind_for(version) {
        let base =
            context.images.ensure_image(&*context.engine, &kind.base).await.map_err(Cause::from);
        let brought = match base {
            Ok(_) => match context.layers.ensure(&*context.engine, version).await {
                Err(err) if !err.allows_image() => return Err(err.into()),
                brought => brought.map(drop).map_err(Cause::from),
            },
            Err(err) => Err(err),
        };
        match brought {
            Ok(()) => {
                context.images.used(version);
                return Ok(());
            }
            Err(err) => {
                tracing::warn!(function = %version.function, version = %version.number, error = %Chain(&*err), "Layers could not be fetched; fetching the image.");
            }
        }
    }
    context.images.ensure(&*context.engine, version).await.map(drop).map_err(Cause::from)
}
