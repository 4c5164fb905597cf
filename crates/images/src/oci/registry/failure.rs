//! Why a registry gave no image, and what can be done.

use std::error::Error;

use oci_client::Client;
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;

use super::Remote;
use crate::error::ImageError;
use crate::oci::media;

/// How many tags are asked for where the wanted one is missing.
const TAGS: usize = 1000;

pub(super) fn failed(remote: &Remote, reason: String) -> ImageError {
    ImageError::Oci { what: format!("pull {remote}"), reason }
}

pub(super) fn no_client(remote: &Remote, error: &OciDistributionError) -> ImageError {
    let reason = format!(
        "the client cannot be made: {}; if this machine has no certificate authorities, `apt-get install \
         ca-certificates` brings them",
        chain(error)
    );
    failed(remote, reason)
}

/// In words that say what to do. Asks the registry for its tags if the one that was wanted is missing.
pub(super) async fn explain(client: &Client, remote: &Remote, error: &OciDistributionError) -> ImageError {
    let registry = remote.registry();
    let reason = match Kind::of(error) {
        Kind::Credentials => format!(
            "{registry} wants credentials for {}, or has no such repository. Emberbox asks without; pull it with \
             another tool, such as `skopeo copy docker://{remote} oci:DIR`, and use oci:DIR",
            remote.reference.repository()
        ),
        Kind::Missing => missing(client, remote).await,
        Kind::Limited => format!("{registry} says that it was asked too often; try again later: {}", chain(error)),
        Kind::Unreachable if remote.is_here() => {
            format!("{registry} does not answer: {}; is the registry running?", chain(error))
        }
        Kind::Unreachable => format!(
            "{registry} does not answer by HTTPS: {}; check its name and the network (only registries on this machine \
             are asked by plain HTTP)",
            chain(error)
        ),
        Kind::Other => format!("{registry} refused: {}", chain(error)),
    };
    failed(remote, reason)
}

async fn missing(client: &Client, remote: &Remote) -> String {
    let (registry, repository) = (remote.registry(), remote.reference.repository());
    let wanted = match (remote.reference.digest(), remote.reference.tag()) {
        (Some(digest), _) => digest.to_owned(),
        (None, tag) => format!("tag {:?}", tag.unwrap_or_default()),
    };
    match client.list_tags(&remote.reference, &RegistryAuth::Anonymous, Some(TAGS), None).await {
        Ok(there) => format!(
            "{repository} has no {wanted}, or not all of it; its tags are: {}",
            media::list(there.tags.into_iter())
        ),
        Err(error) if matches!(Kind::of(&error), Kind::Missing) => {
            format!("{registry} has no repository {repository:?}")
        }
        Err(error) => format!("{repository} has no {wanted}; asking for its tags failed as well: {}", chain(&error)),
    }
}

enum Kind {
    Credentials,
    Missing,
    Limited,
    Unreachable,
    Other,
}

impl Kind {
    fn of(error: &OciDistributionError) -> Self {
        use OciErrorCode as Code;
        match error {
            OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
                Self::Credentials
            }
            OciDistributionError::ServerError { code: 401 | 403, .. } => Self::Credentials,
            OciDistributionError::ServerError { code: 404, .. } => Self::Missing,
            OciDistributionError::ServerError { code: 429, .. } => Self::Limited,
            OciDistributionError::ImageManifestNotFoundError(_) => Self::Missing,
            OciDistributionError::RequestError(_) => Self::Unreachable,
            OciDistributionError::RegistryError { envelope, .. } => match envelope.errors.first().map(|e| &e.code) {
                Some(Code::Unauthorized | Code::Denied) => Self::Credentials,
                Some(
                    Code::ManifestUnknown
                    | Code::ManifestBlobUnknown
                    | Code::BlobUnknown
                    | Code::NameUnknown
                    | Code::NotFound,
                ) => Self::Missing,
                Some(Code::Toomanyrequests) => Self::Limited,
                _ => Self::Other,
            },
            _ => Self::Other,
        }
    }
}

/// The error and its causes, as the client's own words leave out why. Cut, as a stranger writes some of them.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !words.contains(&next) {
            words = format!("{words}: {next}");
        }
        cause = error.source();
    }
    words.chars().filter(|c| !c.is_control()).take(1000).collect()
}
