//! HTTP and HTTPS connections, with a body whose sending can be watched.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use indicatif::ProgressBar;
use rustls::{ClientConfig, RootCertStore};

/// How long making a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest wait for an answer: a function may run for 15 minutes.
const ANSWER: Duration = Duration::from_secs(16 * 60);

/// A pool of connections.
pub struct Transport {
    client: hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, Upload>,
}

impl Transport {
    /// Trusts the system's certificates, and those of AWS_CA_BUNDLE as the AWS CLI does.
    pub fn new() -> Result<Self> {
        let mut roots = RootCertStore::empty();
        // A system without certificates can still speak HTTP; HTTPS then fails with a message that says so.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(bundle) = std::env::var_os("AWS_CA_BUNDLE").filter(|v| !v.is_empty()) {
            let reading = || format!("read AWS_CA_BUNDLE {}", bundle.display());
            let pem = std::fs::read(&bundle).with_context(reading)?;
            for certificate in rustls_pemfile::certs(&mut pem.as_slice()) {
                roots.add(certificate.with_context(reading)?).with_context(reading)?;
            }
        }
        // The provider is named rather than taken from the process, so that tests need not install one.
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .context("set up TLS")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self { client })
    }

    /// Sends a request and reads the whole answer.
    pub async fn send(&self, request: Request<Bytes>, progress: Option<&ProgressBar>) -> Result<Response<Bytes>> {
        let request = request.map(|bytes| Upload { rest: bytes, progress: progress.cloned() });
        let exchange = async {
            let (parts, body) = self.client.request(request).await?.into_parts();
            Ok(Response::from_parts(parts, body.collect().await.context("read the answer")?.to_bytes()))
        };
        tokio::time::timeout(ANSWER, exchange).await.context("no answer within 16 minutes")?
    }
}

/// A request's body that tells a progress bar how much of it was taken.
struct Upload {
    rest: Bytes,
    progress: Option<ProgressBar>,
}

/// How much the bar moves at a time.
const CHUNK: usize = 64 << 10;

impl Body for Upload {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Poller<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let size = self.rest.len().min(CHUNK);
        let chunk = self.rest.split_to(size);
        if let Some(progress) = &self.progress {
            progress.inc(size as u64);
        }
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
