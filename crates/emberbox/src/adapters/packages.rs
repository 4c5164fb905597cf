//! Code packages, for the Frontend to let clients download.

use async_trait::async_trait;
use bytes::Bytes;
use frontend::ports;
use packages::{PackageError, Packages};

/// The package storage of this process.
pub struct Code(pub Packages);

#[async_trait]
impl ports::Code for Code {
    async fn zip(&self, sha256_base64: &str) -> Result<Option<Bytes>, String> {
        match self.0.zip(sha256_base64).await {
            Ok(zip) => Ok(Some(zip)),
            Err(PackageError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }
}
