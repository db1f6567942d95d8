//! Creates and removes networks of the engine. Their purpose is in [`crate::network`].

use super::{CONTAINER_LABEL, Engine, EngineError};
use crate::image::reference::is_reference;
use bollard::{errors::Error as Bollard, models::NetworkCreateRequest};
use std::collections::HashMap;

impl Engine {
    /// Creates a bridge whose containers cannot reach each other, unless it exists.
    pub(crate) async fn ensure_network(&self, name: &str, bridge: &str) -> Result<(), EngineError> {
        match self.docker.inspect_network(name, None).await {
            Ok(_) => return Ok(()),
            Err(Bollard::DockerResponseServerError { status_code: 404, .. }) => {}
            Err(err) => return Err(EngineError::new("looking for a network")(err)),
        }
        let option = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".into()),
            options: Some(HashMap::from([
                option("com.docker.network.bridge.name", bridge),
                option("com.docker.network.bridge.enable_icc", "false"),
            ])),
            labels: Some(HashMap::from([option(CONTAINER_LABEL, &self.owner)])),
            ..NetworkCreateRequest::default()
        };
        let made = self.docker.create_network(request).await;
        made.map(drop).map_err(EngineError::new("making a network"))
    }

    /// Removes a network, if it exists.
    pub(crate) async fn remove_network(&self, name: &str) -> Result<(), EngineError> {
        debug_assert!(is_reference(name));
        match self.docker.remove_network(name).await {
            Ok(()) | Err(Bollard::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
            Err(err) => Err(EngineError::new("removing a network")(err)),
        }
    }

    /// The builder's id: unique on this machine.
    pub(crate) fn owner(&self) -> &str {
        &self.owner
    }
}
