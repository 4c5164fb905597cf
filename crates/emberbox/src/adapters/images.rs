//! Container images, for the control plane to resolve, fetch and remove, and for the worker to run.

use async_trait::async_trait;
use control_plane::{ImageFault, ImageFaultKind};
use domain::{ImageRef, WorkerError};
#[cfg(feature = "oci")]
use images::oci::{Remote, Store};
#[cfg(feature = "oci")]
use images::{ImageError, Refusal};
use worker::sources::ContainerImage;

/// The images of this process.
#[cfg(feature = "oci")]
#[derive(Clone)]
pub struct Images(pub Store);

/// Of a build that asks no registries.
#[cfg(not(feature = "oci"))]
#[derive(Clone)]
pub struct Images;

#[cfg(feature = "oci")]
fn fault(error: &ImageError) -> ImageFault {
    let kind = match error {
        ImageError::Registry { kind: Refusal::Missing, .. } => ImageFaultKind::Missing,
        ImageError::Registry { kind: Refusal::Denied, .. } => ImageFaultKind::Denied,
        ImageError::Registry { kind: Refusal::Limited | Refusal::Unavailable, .. } | ImageError::Io { .. } => {
            ImageFaultKind::Unavailable
        }
        ImageError::Source { .. } => ImageFaultKind::Name,
        _ => ImageFaultKind::Invalid,
    };
    ImageFault { kind, reason: error.to_string() }
}

#[cfg(feature = "oci")]
#[async_trait]
impl control_plane::ImageCatalog for Images {
    async fn resolve(&self, uri: &str) -> Result<ImageRef, ImageFault> {
        let remote = Remote::parse(uri).map_err(|error| fault(&error))?;
        let digest = self.0.resolve(&remote).await.map_err(|error| fault(&error))?;
        Ok(ImageRef { uri: uri.to_owned(), resolved_uri: remote.at(&digest).to_string(), digest })
    }

    async fn ensure(&self, image: &ImageRef) -> Result<(), ImageFault> {
        let remote = Remote::parse(&image.resolved_uri).map_err(|error| fault(&error))?;
        if !self.0.is_here(&image.digest) {
            tracing::info!(image = image.resolved_uri, "pulling a container image");
        }
        self.0.ensure(&remote, &image.digest).await.map(drop).map_err(|error| fault(&error))
    }

    async fn remove(&self, digest: &str) -> Result<(), String> {
        self.0.remove(digest).await.map_err(|error| error.to_string())
    }
}

#[cfg(feature = "oci")]
#[async_trait]
impl worker::sources::ImageSource for Images {
    async fn image(&self, image: &ImageRef) -> Result<ContainerImage, WorkerError> {
        let words = |error: ImageError| WorkerError::Image(error.to_string());
        let remote = Remote::parse(&image.resolved_uri).map_err(words)?;
        let here = self.0.ensure(&remote, &image.digest).await.map_err(words)?;
        let config = here.config.clone();
        Ok(ContainerImage {
            root: here.root.clone(),
            entry_point: config.entrypoint,
            command: config.command,
            env: config.environment,
            working_directory: config.working_directory,
        })
    }

    fn is_here(&self, digest: &str) -> bool {
        self.0.is_here(digest)
    }

    fn all(&self) -> Vec<String> {
        self.0.all().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot tell which images are on this host; sandboxes are placed without regard to them");
            Vec::new()
        })
    }
}

#[cfg(not(feature = "oci"))]
const MISSING: &str = "this Emberbox was built without its feature `oci`, which asks registries";

#[cfg(not(feature = "oci"))]
#[async_trait]
impl control_plane::ImageCatalog for Images {
    async fn resolve(&self, _: &str) -> Result<ImageRef, ImageFault> {
        Err(ImageFault { kind: ImageFaultKind::Invalid, reason: MISSING.to_owned() })
    }

    async fn ensure(&self, _: &ImageRef) -> Result<(), ImageFault> {
        Err(ImageFault { kind: ImageFaultKind::Invalid, reason: MISSING.to_owned() })
    }

    async fn remove(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

#[cfg(not(feature = "oci"))]
#[async_trait]
impl worker::sources::ImageSource for Images {
    async fn image(&self, image: &ImageRef) -> Result<ContainerImage, WorkerError> {
        Err(WorkerError::Image(format!("{}: {MISSING}", image.resolved_uri)))
    }

    fn is_here(&self, _: &str) -> bool {
        false
    }
}
