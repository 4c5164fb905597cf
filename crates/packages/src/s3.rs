//! `GetObject`, `PutObject` and `DeleteObject` at an S3-compatible endpoint: for `S3Bucket` and `S3Key`, for a destination
//! that is a bucket, and for the package storage of a fleet ([`crate::zips`]).

mod sign;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::PackageError;

/// Longest wait for the connection, for the answer's head and for each next piece of its body.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// A request's body may take a second for each of these, beside.
const SLOWEST: usize = 1024 * 1024;
/// An S3 error document is far smaller.
const ERROR_LIMIT: u64 = 64 * 1024;

/// An S3-compatible endpoint. Buckets are addressed by path, which every implementation understands.
#[derive(Clone)]
pub struct S3Config {
    /// e.g. `http://127.0.0.1:9000`; AWS's own for the region when absent.
    pub endpoint: Option<String>,
    /// For the signature, e.g. `us-east-1`.
    pub region: String,
    /// Access key id.
    pub access_key: String,
    /// Secret access key.
    pub secret_key: String,
    /// For temporary credentials.
    pub session_token: Option<String>,
}

impl S3Config {
    /// The endpoint for messages: without a user and a password, which somebody may have written into it.
    pub(crate) fn shown_endpoint(&self) -> String {
        let endpoint = self.url();
        match endpoint.split_once('@') {
            None => endpoint,
            Some((before, after)) => {
                format!("{}://{after}", before.split_once("://").map_or("http", |(scheme, _)| scheme))
            }
        }
    }

    fn url(&self) -> String {
        self.endpoint.clone().unwrap_or_else(|| format!("https://s3.{}.amazonaws.com", self.region))
    }
}

impl std::fmt::Debug for S3Config {
    /// Without the secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Config")
            .field("endpoint", &self.shown_endpoint())
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// Why S3 did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum S3Error {
    /// It answered, with an error.
    #[error("S3 answered {code}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// e.g. `NoSuchBucket`; the status where S3 gives no code.
        code: String,
        /// S3's own.
        message: String,
    },
    /// The answer is larger than the caller takes.
    #[error("S3 answered with more than {0} bytes")]
    TooLarge(u64),
    /// It did not answer.
    #[error("{0}")]
    Unreachable(String),
}

impl S3Error {
    /// Whether the same request may succeed a moment later. Which refusals are of that kind: *Error responses* in S3's API
    /// reference.
    pub(crate) fn retryable(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::TooLarge(_) => false,
            Self::Refused { status, code, .. } => {
                const DAMAGED_ON_THE_WAY: [&str; 4] =
                    ["BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch"];
                *status >= 500 || matches!(status, 408 | 429) || DAMAGED_ON_THE_WAY.contains(&code.as_str())
            }
        }
    }
}

/// One call of S3.
#[derive(Clone)]
pub(crate) struct Call<'a> {
    pub method: Method,
    pub bucket: &'a str,
    pub key: &'a str,
    /// Encoded, without question mark.
    pub query: String,
    pub body: Bytes,
    /// What the answer's body may be at most, in bytes.
    pub limit: u64,
    /// Longest wait for the connection, for the answer's head and for each next piece of its body.
    pub patience: Duration,
}

/// Reads one object of at most `limit` bytes.
pub(crate) async fn get_object(
    config: &S3Config,
    bucket: &str,
    key: &str,
    version: Option<&str>,
    limit: u64,
) -> Result<Bytes, PackageError> {
    let unreachable =
        |cause: String| PackageError::S3Unreachable { bucket: bucket.to_owned(), key: key.to_owned(), cause };
    let query = version.map(|version| format!("versionId={}", sign::encode(version))).unwrap_or_default();
    let get = Call { method: Method::GET, bucket, key, query, body: Bytes::new(), limit, patience: PATIENCE };
    call(config, get).await.map_err(|error| match error {
        S3Error::TooLarge(limit) => PackageError::UnzippedTooLarge { limit },
        S3Error::Unreachable(cause) => unreachable(cause),
        S3Error::Refused { code, .. } if code == "AccessDenied" => {
            PackageError::S3AccessDenied { bucket: bucket.to_owned(), key: key.to_owned() }
        }
        S3Error::Refused { status, code, message } if status >= 500 => unreachable(format!("{code}: {message}")),
        S3Error::Refused { code, message, .. } => PackageError::S3 { code, message },
    })
}

/// Writes one object, or replaces it.
pub async fn put_object(config: &S3Config, bucket: &str, key: &str, body: Bytes) -> Result<(), S3Error> {
    let query = String::new();
    let put = Call { method: Method::PUT, bucket, key, query, body, limit: ERROR_LIMIT, patience: PATIENCE };
    call(config, put).await?;
    Ok(())
}

/// Sends a request and reads the body of its answer.
pub(crate) async fn call(config: &S3Config, call: Call<'_>) -> Result<Bytes, S3Error> {
    let Call { method, bucket, key, query, body, limit, patience } = call;
    let endpoint = config.shown_endpoint();
    let failed =
        |what: &str, cause: &dyn std::fmt::Display| S3Error::Unreachable(format!("{what} {endpoint}: {cause}"));
    let uri: Uri = config.url().parse().map_err(|e| failed("endpoint", &e))?;
    let (Some(host), Some(authority)) = (uri.host(), uri.authority()) else {
        return Err(failed("endpoint", &"is not of the form http://host:port"));
    };
    if authority.as_str().contains('@') {
        return Err(failed("endpoint", &"is given with a user; give the access key in its own settings instead"));
    }
    let tls = uri.scheme_str() == Some("https");
    let path = format!("{}/{}/{}", uri.path().trim_end_matches('/'), sign::encode(bucket), sign::encode_path(key));
    let target = if query.is_empty() { path.clone() } else { format!("{path}?{query}") };
    let signed = sign::headers(
        config,
        &sign::Parts { method: method.as_str(), host: authority.as_str(), path: &path, query: &query, body: &body },
        OffsetDateTime::now_utc(),
    );
    let mut request = Request::builder().method(method).uri(&target).header("host", authority.as_str());
    for (name, value) in &signed {
        request = request.header(*name, value);
    }
    let sending = patience + Duration::from_secs((body.len() / SLOWEST) as u64);
    let request = request.body(Full::new(body)).map_err(|e| failed("request to", &e))?;

    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let connected = timeout(patience, TcpStream::connect((host, port))).await.map_err(|e| failed("connect to", &e))?;
    let stream = connected.map_err(|e| failed("connect to", &e))?;
    let response = if tls {
        let name = ServerName::try_from(host.to_owned()).map_err(|e| failed("endpoint", &e))?;
        let connector = tokio_rustls::TlsConnector::from(client_tls().map_err(|e| failed("TLS set-up for", &e))?);
        let stream = timeout(patience, connector.connect(name, stream)).await.map_err(|e| failed("TLS with", &e))?;
        timeout(sending, send(stream.map_err(|e| failed("TLS with", &e))?, request)).await
    } else {
        timeout(sending, send(stream, request)).await
    };
    let response = response.map_err(|e| failed("request to", &e))?.map_err(|e| failed("request to", &e))?;
    let status = response.status();
    let limit = if status.is_success() { limit } else { ERROR_LIMIT };
    let body = read_body(response.into_body(), limit, patience).await.map_err(|error| match error {
        S3Error::Unreachable(cause) => failed("read the answer of", &cause),
        error => error,
    })?;
    if status.is_success() { Ok(body) } else { Err(refused(status, &body)) }
}

/// Reads S3's error document.
fn refused(status: StatusCode, body: &[u8]) -> S3Error {
    let document = String::from_utf8_lossy(body);
    S3Error::Refused {
        status: status.as_u16(),
        code: element(&document, "Code").unwrap_or_else(|| status.as_u16().to_string()),
        message: element(&document, "Message")
            .unwrap_or_else(|| status.canonical_reason().unwrap_or_default().to_owned()),
    }
}

/// Sends one request over a connection that ends with its answer.
async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> hyper::Result<Response<Incoming>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the body, or when it is dropped; its errors reach the reader of the body.
    tokio::spawn(connection);
    sender.send_request(request).await
}

async fn read_body(mut body: Incoming, limit: u64, patience: Duration) -> Result<Bytes, S3Error> {
    let mut read = BytesMut::new();
    loop {
        let frame = timeout(patience, body.frame()).await.map_err(|e| S3Error::Unreachable(e.to_string()))?;
        let Some(frame) = frame else { return Ok(read.freeze()) };
        let frame = frame.map_err(|e| S3Error::Unreachable(e.to_string()))?;
        if let Ok(data) = frame.into_data() {
            if (read.len() + data.len()) as u64 > limit {
                return Err(S3Error::TooLarge(limit));
            }
            read.extend_from_slice(&data);
        }
    }
}

/// Trusts what the host trusts, as it was when this was first asked for.
fn client_tls() -> Result<Arc<rustls::ClientConfig>, String> {
    static TLS: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    match TLS.get() {
        Some(tls) => Ok(Arc::clone(tls)),
        None => make_client_tls().map(|tls| Arc::clone(TLS.get_or_init(|| tls))),
    }
}

fn make_client_tls() -> Result<Arc<rustls::ClientConfig>, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("this host has no CA certificates; install the package ca-certificates".to_owned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(Arc::new(builder.map_err(|e| e.to_string())?.with_root_certificates(roots).with_no_client_auth()))
}

/// The text of the first `<name>` in an S3 error document, which has neither attributes nor nesting there.
fn element(document: &str, name: &str) -> Option<String> {
    let (_, rest) = document.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(
        text.replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&quot;", "\"")
            .replace("&apos;", "'")
            .replace("&amp;", "&"),
    )
}
