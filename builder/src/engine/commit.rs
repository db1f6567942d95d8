//! Fallback to get layers and a configuration into an engine that does not load our archives:
//! unpack the layers into a container that never runs, and commit it.

use super::{
    Engine, EngineError, Part,
    container::{Limits, Rights, Task},
    files,
};
use crate::image::{Image, Layer};
use bollard::{
    body_try_stream,
    models::ContainerConfig,
    query_parameters::{CommitContainerOptionsBuilder, UploadToContainerOptionsBuilder},
};
use epsilon_api::units::{Bytes, MilliCores};
use std::time::Duration;

impl Engine {
    /// Makes a named image from `base`, layers and a configuration.
    pub(crate) async fn commit(
        &self,
        base: &str,
        layers: &[Layer],
        image: &Image,
        name: &str,
    ) -> Result<(), EngineError> {
        let task = Task {
            purpose: "commit",
            image: base.to_owned(),
            command: vec!["true".into()],
            env: Vec::new(),
            mounts: Vec::new(),
            workdir: "/",
            rights: Rights::Install,
            network: None,
            // It never runs.
            limits: Limits {
                memory: Bytes::mib(64),
                cpu: MilliCores::ONE,
                pids: 32,
                time: Duration::from_secs(1),
            },
            largest_file: None,
        };
        let container = self.create(&task, None).await?;
        for layer in layers {
            let options = UploadToContainerOptionsBuilder::default().path("/").build();
            let tar = body_try_stream(files(vec![Part::File(layer.tar.clone())]));
            let uploaded =
                self.docker.upload_to_container(container.name(), Some(options), tar).await;
            uploaded.map_err(EngineError::new("unpacking a layer"))?;
        }
        let (repository, tag) = super::split_tag(name);
        let options = CommitContainerOptionsBuilder::default()
            .container(container.name())
            .repo(repository)
            .tag(tag)
            .pause(false)
            .build();
        let committed = self.docker.commit_container(options, settings(image)).await;
        committed.map(drop).map_err(EngineError::new("committing an image"))
    }
}

/// The part of an image's configuration that describes how to run it; the engine uses the same
/// names.
fn settings(image: &Image) -> ContainerConfig {
    let whole: serde_json::Value = serde_json::from_slice(&image.config).unwrap_or_default();
    serde_json::from_value(whole["config"].clone()).unwrap_or_default()
}
