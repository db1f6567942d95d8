//! A member's credential and known gateways, stored across restarts.

use crate::secret_file;
use epsilon_api::{fleet::Welcome, redacted::Secret};
use std::{fs, io, path::PathBuf};

#[derive(Debug)]
pub(crate) struct Credentials {
    folder: PathBuf,
    /// As stored in the file, so that a heartbeat without changes writes nothing.
    gateways: Option<Welcome>,
}

impl Credentials {
    pub(crate) fn new(folder: PathBuf) -> Self {
        let text = fs::read(folder.join("gateways.json")).unwrap_or_default();
        // A file that cannot be parsed (another release) counts as absent: the next heartbeat
        // brings it again.
        Self { gateways: serde_json::from_slice(&text).ok(), folder }
    }

    pub(crate) fn gateways(&self) -> Option<Welcome> {
        self.gateways.clone()
    }

    pub(crate) fn credential(&self) -> io::Result<Option<Secret<String>>> {
        let path = self.folder.join("credential");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(Secret::new(text.trim().to_owned()))),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => {
                let text = format!("`{}` cannot be read: {err}", path.display());
                Err(io::Error::new(err.kind(), text))
            }
        }
    }

    pub(crate) fn store_credential(&self, credential: &Secret<String>) -> io::Result<()> {
        secret_file::write(&self.folder.join("credential"), &format!("{}\n", credential.reveal()))
    }

    /// Removes the credential after deregistering. A file that stays costs the next start one
    /// refusal.
    pub(crate) fn remove_credential(&self) {
        let _ = fs::remove_file(self.folder.join("credential"));
    }

    pub(crate) fn store_gateways(&mut self, welcome: &Welcome) -> io::Result<()> {
        if self.gateways.as_ref() == Some(welcome) {
            return Ok(());
        }
        let text = serde_json::to_string(welcome).map_err(io::Error::other)?;
        secret_file::write(&self.folder.join("gateways.json"), &text)?;
        self.gateways = Some(welcome.clone());
        Ok(())
    }
}
