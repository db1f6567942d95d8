//! Networks of the engine: made, and removed again. What one is for is [`crate::network`]'s.

use super::{CONTAINER_LABEL, Engine, EngineError, is_reference};
use bollard::{errors::Error as Bollard, models::NetworkCreateRequest};
use std::collections::HashMap;

impl Engine {
    /// Makes a bridge whose containers cannot talk to each other, unless it is there.
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

    /// Removes a network, if it is there.
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
