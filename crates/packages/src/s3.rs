//! `GetObject` and `PutObject` at an S3-compatible endpoint: the two calls that Lambda makes, for `S3Bucket` and `S3Key`
//! and for a destination that is a bucket.

mod sign;

use std::sync::Arc;
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
const PATIENCE: Duration = Duration::from_secs(30);
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

impl std::fmt::Debug for S3Config {
    /// Without the secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Config")
            .field("endpoint", &self.endpoint)
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
    call(config, Method::GET, bucket, key, &query, Bytes::new(), limit).await.map_err(|error| match error {
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
    call(config, Method::PUT, bucket, key, "", body, ERROR_LIMIT).await?;
    Ok(())
}

/// Sends a request and reads the body of its answer, which is at most `limit` bytes.
async fn call(
    config: &S3Config,
    method: Method,
    bucket: &str,
    key: &str,
    query: &str,
    body: Bytes,
    limit: u64,
) -> Result<Bytes, S3Error> {
    let endpoint = config.endpoint.clone().unwrap_or_else(|| format!("https://s3.{}.amazonaws.com", config.region));
    let failed =
        |what: &str, cause: &dyn std::fmt::Display| S3Error::Unreachable(format!("{what} {endpoint}: {cause}"));
    let uri: Uri = endpoint.parse().map_err(|e| failed("endpoint", &e))?;
    let (Some(host), Some(authority)) = (uri.host(), uri.authority()) else {
        return Err(failed("endpoint", &"is not of the form http://host:port"));
    };
    let tls = uri.scheme_str() == Some("https");
    let path = format!("{}/{}/{}", uri.path().trim_end_matches('/'), sign::encode(bucket), sign::encode_path(key));
    let target = if query.is_empty() { path.clone() } else { format!("{path}?{query}") };
    let signed = sign::headers(
        config,
        &sign::Parts { method: method.as_str(), host: authority.as_str(), path: &path, query, body: &body },
        OffsetDateTime::now_utc(),
    );
    let mut request = Request::builder().method(method).uri(&target).header("host", authority.as_str());
    for (name, value) in &signed {
        request = request.header(*name, value);
    }
    let request = request.body(Full::new(body)).map_err(|e| failed("request to", &e))?;

    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let connected = timeout(PATIENCE, TcpStream::connect((host, port))).await.map_err(|e| failed("connect to", &e))?;
    let stream = connected.map_err(|e| failed("connect to", &e))?;
    let response = if tls {
        let name = ServerName::try_from(host.to_owned()).map_err(|e| failed("endpoint", &e))?;
        let connector = tokio_rustls::TlsConnector::from(client_tls().map_err(|e| failed("TLS set-up for", &e))?);
        let stream = timeout(PATIENCE, connector.connect(name, stream)).await.map_err(|e| failed("TLS with", &e))?;
        send(stream.map_err(|e| failed("TLS with", &e))?, request).await
    } else {
        send(stream, request).await
    };
    let response = response.map_err(|e| failed("request to", &e))?;
    let status = response.status();
    let limit = if status.is_success() { limit } else { ERROR_LIMIT };
    let body = read_body(response.into_body(), limit).await?;
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
) -> Result<Response<Incoming>, String> {
    let exchange = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the body, or when it is dropped; its errors reach the reader of the body.
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    timeout(PATIENCE, exchange).await.map_err(|e| e.to_string())?.map_err(|e: hyper::Error| e.to_string())
}

async fn read_body(mut body: Incoming, limit: u64) -> Result<Bytes, S3Error> {
    let mut read = BytesMut::new();
    loop {
        let frame =
            timeout(PATIENCE, body.frame()).await.map_err(|e| S3Error::Unreachable(format!("read object: {e}")))?;
        let Some(frame) = frame else { return Ok(read.freeze()) };
        let frame = frame.map_err(|e| S3Error::Unreachable(format!("read object: {e}")))?;
        if let Ok(data) = frame.into_data() {
            if (read.len() + data.len()) as u64 > limit {
                return Err(S3Error::TooLarge(limit));
            }
            read.extend_from_slice(&data);
        }
    }
}

/// Trusts what the host trusts.
fn client_tls() -> Result<Arc<rustls::ClientConfig>, String> {
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
