//! stub, not committed
use super::settings::Settings;
use crate::failure::Failure;
use std::{net::SocketAddr, path::Path};
pub(super) struct Platform;
pub(super) struct Running;
impl Platform {
    pub(super) async fn build(_s: Settings, _d: &Path) -> Result<Self, Failure> {
        Ok(Self)
    }
    pub(super) async fn ensure_runtime(&self) -> Result<(), Failure> {
        Ok(())
    }
    pub(super) fn serve(self) -> Running {
        Running
    }
    pub(super) async fn remove(self) {}
}
impl Running {
    pub(super) fn public_addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], 1).into()
    }
    pub(super) fn control_addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], 1).into()
    }
    pub(super) async fn drain(self, _f: impl Future<Output = &'static str>) -> usize {
        0
    }
}
