//! Zips as the objects of a bucket, for hosts that share no disk.
//!
//! An object's key is the hash of its content, so a second PUT of it changes nothing, which makes every call safe to repeat.

use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use hyper::Method;

use super::cache::Cache;
use crate::files::blocking;
use crate::id::PackageId;
use crate::s3::{self, Call, S3Config, S3Error};
use crate::{PackageError, Retry};

/// For answers that say nothing but that it was done.
const ANSWER_LIMIT: u64 = 64 * 1024;

/// Code packages in S3 or what speaks its protocol.
#[derive(Clone, Debug)]
pub struct S3Storage {
    /// Which service, and as whom.
    pub s3: S3Config,
    /// Must exist. Its own of this fleet, or shared under [`Self::prefix`].
    pub bucket: String,
    /// What all keys begin with, before a slash; may be empty. Two fleets in one bucket need two.
    pub prefix: String,
    /// Size of this host's cache of zips in bytes, without what is on its way in. What is unpacked is not counted.
    pub cache_bytes: u64,
    /// What happens when the service fails.
    pub retry: Retry,
}

impl S3Storage {
    /// With a cache of 8 GiB, and the usual patience.
    pub fn new(s3: S3Config, bucket: impl Into<String>, prefix: impl Into<String>) -> Self {
        Self { s3, bucket: bucket.into(), prefix: prefix.into(), cache_bytes: 8 << 30, retry: Retry::default() }
    }
}

pub(crate) struct Bucket {
    config: S3Storage,
    cache: Arc<Cache>,
    random: RandomState,
}

/// Why one try failed.
enum Fault {
    S3(S3Error),
    /// The content is another one.
    Damaged,
}

impl From<S3Error> for Fault {
    fn from(error: S3Error) -> Self {
        match error {
            // No package has more bytes than it has.
            S3Error::TooLarge(_) => Self::Damaged,
            error => Self::S3(error),
        }
    }
}

impl Fault {
    fn retryable(&self) -> bool {
        match self {
            Self::S3(error) => error.retryable(),
            // Whatever stands between here and there may have had a bad moment.
            Self::Damaged => true,
        }
    }
}

impl Bucket {
    pub(crate) fn open(config: &S3Storage, cache: &Path, temp: &Path) -> Result<Self, PackageError> {
        let cache = Arc::new(Cache::open(cache, temp, config.cache_bytes)?);
        Ok(Self { config: config.clone(), cache, random: RandomState::new() })
    }

    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(crate) async fn put(&self, id: PackageId, zip: Bytes) -> Result<(), PackageError> {
        // The signature covers the content's hash, which the service checks before it stores anything.
        self.call("store the package as", Method::PUT, id, &zip, ANSWER_LIMIT).await.map(drop)
    }

    /// From the cache, or into it.
    pub(crate) async fn fetch(&self, id: PackageId, limit: u64) -> Result<Bytes, PackageError> {
        if let Some(zip) = self.cached(id).await? {
            return Ok(zip);
        }
        let zip = self.get(id, limit).await?;
        let (cache, kept) = (Arc::clone(&self.cache), zip.clone());
        if let Err(error) = blocking(move || cache.keep(id, &kept)).await {
            tracing::warn!(%error, "keep a package in this host's cache; the next use fetches it again");
        }
        Ok(zip)
    }

    pub(crate) async fn read(&self, id: PackageId, limit: u64) -> Result<Bytes, PackageError> {
        match self.cached(id).await? {
            Some(zip) => Ok(zip),
            None => self.get(id, limit).await,
        }
    }

    pub(crate) async fn remove(&self, id: PackageId) -> Result<(), PackageError> {
        match self.call("remove the package", Method::DELETE, id, &Bytes::new(), ANSWER_LIMIT).await {
            Ok(_) | Err(PackageError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let cache = Arc::clone(&self.cache);
        blocking(move || cache.remove(id)).await
    }

    pub(crate) fn damaged(&self, id: PackageId) -> PackageError {
        let place = format!("s3://{}/{}", self.config.bucket, self.key(id));
        PackageError::Damaged { sha256: id.base64(), place }
    }

    async fn cached(&self, id: PackageId) -> Result<Option<Bytes>, PackageError> {
        let cache = Arc::clone(&self.cache);
        blocking(move || cache.read(id)).await
    }

    async fn get(&self, id: PackageId, limit: u64) -> Result<Bytes, PackageError> {
        self.call("read the package", Method::GET, id, &Bytes::new(), limit).await
    }

    fn key(&self, id: PackageId) -> String {
        match self.config.prefix.trim_matches('/') {
            "" => format!("zips/{}", id.file_name()),
            prefix => format!("{prefix}/zips/{}", id.file_name()),
        }
    }

    /// Sends a request until it succeeds, is refused for good, or was sent often enough.
    async fn call(
        &self,
        operation: &'static str,
        method: Method,
        id: PackageId,
        body: &Bytes,
        limit: u64,
    ) -> Result<Bytes, PackageError> {
        let key = self.key(id);
        let retry = &self.config.retry;
        let mut failed = 0;
        loop {
            let fault = match self.call_once(&method, id, &key, body, limit).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            failed += 1;
            let wait = retry.delay(failed, self.random.hash_one((id, failed))).filter(|_| fault.retryable());
            let error = self.error(operation, id, &key, fault, failed);
            let Some(wait) = wait else { return Err(error) };
            tracing::debug!(%error, ?wait, "trying again");
            tokio::time::sleep(wait).await;
        }
    }

    async fn call_once(
        &self,
        method: &Method,
        id: PackageId,
        key: &str,
        body: &Bytes,
        limit: u64,
    ) -> Result<Bytes, Fault> {
        let call = Call {
            method: method.clone(),
            bucket: &self.config.bucket,
            key,
            query: String::new(),
            body: body.clone(),
            limit,
            patience: self.config.retry.patience,
        };
        let answer = s3::call(&self.config.s3, call).await?;
        if *method != Method::GET {
            return Ok(answer);
        }
        let hashed = answer.clone();
        let same = tokio::task::spawn_blocking(move || PackageId::of(&hashed) == id).await.expect("hashing ends");
        if same { Ok(answer) } else { Err(Fault::Damaged) }
    }

    fn error(&self, operation: &'static str, id: PackageId, key: &str, fault: Fault, tries: u32) -> PackageError {
        let error = match fault {
            Fault::Damaged => return self.damaged(id),
            Fault::S3(S3Error::Refused { status: 404, code, .. }) if code == "NoSuchKey" => {
                return PackageError::NotFound { sha256: id.base64() };
            }
            Fault::S3(error) => error,
        };
        let tried = if tries > 1 { format!(" ({tries} tries)") } else { String::new() };
        PackageError::Storage {
            operation,
            bucket: self.config.bucket.clone(),
            key: key.to_owned(),
            endpoint: self.config.s3.shown_endpoint(),
            cause: format!("{}{tried}; {}", shown(&error), advice(&error)),
        }
    }
}

/// What the service said, in a line of bounded length: it comes from elsewhere, and goes into logs and answers.
fn shown(error: &S3Error) -> String {
    const LONGEST: usize = 300;
    let text = error.to_string();
    text.trim_end_matches('.').chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect()
}

/// What the operator can do.
fn advice(error: &S3Error) -> &'static str {
    match error {
        S3Error::Refused { status, code, .. } => match (code.as_str(), status) {
            ("NoSuchBucket", _) => "make the bucket, or name another in the configuration of the package storage",
            ("RequestTimeTooSkewed", _) => "set this host's clock",
            ("AuthorizationHeaderMalformed" | "PermanentRedirect" | "TemporaryRedirect", _) => {
                "the bucket is elsewhere: correct region and endpoint of the package storage"
            }
            ("ExpiredToken" | "InvalidToken", _) | (_, 401 | 403) => {
                "check the access key of the package storage, and that it may s3:GetObject, s3:PutObject and \
                 s3:DeleteObject on these keys and s3:ListBucket on the bucket"
            }
            (_, 500..) | (_, 429) => "the storage is overloaded or failing: try again later",
            _ => "check that the endpoint of the package storage is one of S3",
        },
        _ => "check that the package storage runs, that this host reaches it, and that its endpoint is right",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, code: &str) -> S3Error {
        S3Error::Refused { status, code: code.to_owned(), message: "a\nb\u{1b}[31m.".to_owned() }
    }

    #[test]
    fn what_passes_by_itself_is_tried_again() {
        for (status, code) in [(500, "InternalError"), (503, "SlowDown"), (400, "RequestTimeout"), (429, "429")] {
            assert!(refused(status, code).retryable(), "{code}");
        }
        for (status, code) in [(403, "AccessDenied"), (404, "NoSuchKey"), (400, "InvalidRequest"), (301, "301")] {
            assert!(!refused(status, code).retryable(), "{code}");
        }
    }

    #[test]
    fn every_refusal_says_what_to_do_in_one_clean_line() {
        assert!(advice(&refused(404, "NoSuchBucket")).starts_with("make the bucket"));
        assert!(advice(&refused(403, "SignatureDoesNotMatch")).contains("access key"));
        assert!(advice(&refused(400, "ExpiredToken")).contains("access key"));
        assert!(advice(&refused(403, "RequestTimeTooSkewed")).contains("clock"));
        assert!(advice(&refused(301, "PermanentRedirect")).contains("region"));
        assert!(advice(&refused(404, "404")).contains("one of S3"));
        assert_eq!(shown(&refused(500, "E")), "S3 answered E: a b [31m");
        assert_eq!(shown(&S3Error::Unreachable("x".repeat(1000))).len(), 300);
    }
}
