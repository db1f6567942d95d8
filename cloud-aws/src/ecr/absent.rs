//! ECR in a program that was built without AWS's SDK: each request fails with that reason. The
//! `registry` crate refuses such a registry at the program's start already; what comes here is an
//! image of ECR's that a deployment names.

use super::{EcrError, EcrHost, Retention, Token};

/// Stands in for the client; has its interface.
#[derive(Debug, Default)]
pub struct Ecr;

impl Ecr {
    /// Uses a fake at this address; here it is as absent as AWS.
    pub fn at(_endpoint: &str) -> Self {
        Self
    }

    /// No token.
    ///
    /// # Errors
    /// Always [`EcrError::NotBuilt`].
    pub async fn token(&self, _host: &EcrHost) -> Result<Token, EcrError> {
        Err(EcrError::NotBuilt)
    }

    /// No other token.
    ///
    /// # Errors
    /// Always [`EcrError::NotBuilt`].
    pub async fn token_after(&self, _host: &EcrHost, _refused: &Token) -> Result<Token, EcrError> {
        Err(EcrError::NotBuilt)
    }

    /// No repository.
    ///
    /// # Errors
    /// Always [`EcrError::NotBuilt`].
    pub async fn ensure_repository(
        &self,
        _host: &EcrHost,
        _name: &str,
        _keep: &Retention,
    ) -> Result<(), EcrError> {
        Err(EcrError::NotBuilt)
    }
}
