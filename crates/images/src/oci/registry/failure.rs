//! Why a registry gave no image, and what can be done.

use std::error::Error;
use std::time::Duration;

use reqwest::StatusCode;
use serde::Deserialize;

use super::Remote;
use super::http::Http;
use crate::error::{ImageError, Refusal};
use crate::oci::media;

/// How many tags are asked for where the wanted one is missing.
const TAGS: usize = 1000;

/// What went wrong with one request.
#[derive(Debug)]
pub(super) enum Problem {
    Said(Refusal, String),
    /// More than so many bytes.
    TooLarge(u64),
}

impl Problem {
    pub(super) fn client(error: &reqwest::Error) -> Self {
        let reason = format!(
            "the client cannot be made: {}; if this machine has no certificate authorities, `apt-get install \
             ca-certificates` brings them",
            chain(error)
        );
        Self::other(reason)
    }

    pub(super) fn transport(error: &reqwest::Error) -> Self {
        Self::Said(Refusal::Unavailable, format!("does not answer: {}", chain(error)))
    }

    pub(super) fn slow(limit: Duration) -> Self {
        Self::Said(Refusal::Unavailable, format!("does not answer: it took more than {} s", limit.as_secs()))
    }

    pub(super) fn denied() -> Self {
        Self::Said(Refusal::Denied, String::new())
    }

    pub(super) fn other(reason: String) -> Self {
        Self::Said(Refusal::Unavailable, format!("refused: {reason}"))
    }

    /// By the codes of OCI's distribution specification, or by the status where there are none.
    pub(super) fn refused(status: StatusCode, body: &[u8]) -> Self {
        #[derive(Deserialize, Default)]
        struct Errors {
            #[serde(default)]
            errors: Vec<One>,
        }
        #[derive(Deserialize)]
        struct One {
            code: String,
            #[serde(default)]
            message: String,
        }
        let errors: Errors = serde_json::from_slice(body).unwrap_or_default();
        let first = errors.errors.first();
        let kind = match (first.map_or("", |error| &error.code), status.as_u16()) {
            ("UNAUTHORIZED" | "DENIED", _) | (_, 401 | 403) => Refusal::Denied,
            ("MANIFEST_UNKNOWN" | "MANIFEST_BLOB_UNKNOWN" | "BLOB_UNKNOWN" | "NAME_UNKNOWN" | "NOT_FOUND", _)
            | (_, 404) => Refusal::Missing,
            ("TOOMANYREQUESTS", _) | (_, 429) => Refusal::Limited,
            _ => Refusal::Unavailable,
        };
        let said = first.map(|error| format!(": {} {}", error.code, error.message)).unwrap_or_default();
        Self::Said(kind, clean(&format!("refused: {status}{said}")))
    }
}

pub(super) fn failed(remote: &Remote, kind: Refusal, reason: String) -> ImageError {
    ImageError::Registry { what: format!("pull {remote}"), kind, reason }
}

/// In words that say what to do. Asks the registry for its tags if the one that was wanted is missing.
pub(super) async fn explain(http: &Http<'_>, remote: &Remote, problem: Problem) -> ImageError {
    let registry = remote.registry();
    let (kind, said) = match problem {
        Problem::TooLarge(limit) => {
            return ImageError::TooLarge { what: format!("what {remote} is"), limit, unit: "bytes" };
        }
        Problem::Said(kind, said) => (kind, said),
    };
    let reason = match kind {
        Refusal::Denied => format!(
            "{registry} wants credentials for {}, or other ones, or has no such repository. The configuration's \
             [[registries]] are where a server has them; for `emberbox image build`, pull it with another tool, such as \
             `skopeo copy docker://{remote} oci:DIR`, and use oci:DIR",
            remote.repository()
        ),
        Refusal::Missing => missing(http, remote).await,
        Refusal::Limited => format!("{registry} says that it was asked too often; try again later: {said}"),
        Refusal::Unavailable if said.starts_with("does not answer") && remote.is_here() => {
            format!("{registry} {said}; is the registry running?")
        }
        Refusal::Unavailable if said.starts_with("does not answer") => format!(
            "{registry} {said}; check its name and the network (only registries on this machine, and those with \
             plain_http in the configuration, are asked by plain HTTP)"
        ),
        Refusal::Unavailable | Refusal::Invalid => format!("{registry} {said}"),
    };
    failed(remote, kind, reason)
}

async fn missing(http: &Http<'_>, remote: &Remote) -> String {
    #[derive(Deserialize)]
    struct Tags {
        tags: Option<Vec<String>>,
    }
    let (registry, repository) = (remote.registry(), remote.repository());
    let wanted = match (remote.reference.digest(), remote.reference.tag()) {
        (Some(digest), _) => digest.to_owned(),
        (None, tag) => format!("tag {:?}", tag.unwrap_or_default()),
    };
    match http.tags(TAGS).await {
        Ok(bytes) => {
            let there: Option<Tags> = serde_json::from_slice(&bytes).ok();
            let there = there.and_then(|there| there.tags).unwrap_or_default();
            let there = media::list(there.into_iter().map(|tag| clean(&tag)));
            format!("{repository} has no {wanted}, or not all of it; its tags are: {there}")
        }
        Err(Problem::Said(Refusal::Missing, _)) => format!("{registry} has no repository {repository:?}"),
        Err(_) => format!("{repository} has no {wanted}; it does not tell its tags"),
    }
}

/// The error and its causes, as the client's own words leave out why.
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
    clean(&words)
}

/// Cut, as a stranger may have written it.
fn clean(words: &str) -> String {
    words.chars().filter(|c| !c.is_control()).take(1000).collect()
}
