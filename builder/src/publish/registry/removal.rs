//! Removes images that no version needs any more from the registry, by `DELETE` of the manifest.
//! The registry collects the layers.
//!
//! Not every registry allows that; a refusal is logged once. ECR has a policy on each repository
//! ([`epsilon_registry::Retention`]) and gets no removals.

use super::{Remote, reference};
use crate::error::{self, Hint};
use epsilon_api::{build::BuildError, function::ImageRef};
use epsilon_registry::EcrHost;
use http::StatusCode;
use oci_client::{RegistryOperation, secrets::RegistryAuth};
use std::sync::atomic::Ordering::Relaxed;

impl Remote {
    /// Removes an image that was pushed here, if the registry allows it.
    pub(crate) async fn remove(&self, image: &ImageRef) -> Result<(), BuildError> {
        let is_ours = image.reference.strip_prefix(&*self.name).is_some_and(|r| r.starts_with('/'));
        let (Some((_, digest)), true) = (image.reference.split_once('@'), is_ours) else {
            return Ok(());
        };
        if EcrHost::parse(self.registry_client.host().as_str()).is_some() {
            return Ok(());
        }
        let target = reference(&image.reference)?;
        let path = format!("{}/manifests/{digest}", target.repository());
        let status = self
            .registry_client
            .run(|session| {
                let target = &target;
                let path = &path;
                async move {
                    // Registries with tokens issue one for all that a push may do.
                    let token = session.client.auth(target, &session.auth, RegistryOperation::Push);
                    let token = session.with_limit("signing in", token).await?;
                    let request = session.http.delete(session.url(path));
                    let request = match (token, &session.auth) {
                        (Some(token), _) => request.bearer_auth(token),
                        (None, RegistryAuth::Basic(user, password)) => {
                            request.basic_auth(user, Some(password))
                        }
                        (None, RegistryAuth::Bearer(token)) => request.bearer_auth(token),
                        (None, RegistryAuth::Anonymous) => request,
                    };
                    let sent = async { request.send().await.map_err(Into::into) };
                    Ok(session.with_limit("removing an image", sent).await?.status())
                }
            })
            .await?;
        match status {
            StatusCode::ACCEPTED | StatusCode::OK | StatusCode::NOT_FOUND => Ok(()),
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                if !self.is_removal_refused.swap(true, Relaxed) {
                    tracing::warn!(registry = %self.registry_client.host(), %status, "Registry refuses to remove images; unneeded ones stay there.");
                }
                Ok(())
            }
            other => Err(error::registry_failed(format!(
                "the registry `{}` answered {other} to the removal of an image",
                self.registry_client.host()
            ))
            .hint("the registry's log says why")),
        }
    }
}
