//! `[functions] endpoint_url`: an endpoint of the host that functions reach from their sandbox.
//!
//! The worker listens in the sandbox's network and forwards bytes, so that no route to the host is needed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::api_server;
use crate::listener::Listener;

/// A function's SDK keeps a handful open.
const MAX_CONNECTIONS: usize = 64;

/// Where the endpoint is, and how functions name it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Endpoint {
    scheme: String,
    /// Host and port to connect to.
    upstream: (String, u16),
    path: String,
    /// The URL stays as it is, and the name leads to the listener; otherwise the URL names the listener.
    by_name: bool,
    /// Port to listen on in the sandbox.
    pub(crate) port: u16,
}

/// Why an endpoint URL is of no use.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("endpoint_url {url:?}: {problem}")]
pub struct EndpointError {
    url: String,
    problem: &'static str,
}

impl Endpoint {
    pub(crate) fn parse(url: &str) -> Result<Self, EndpointError> {
        let problem = |problem| EndpointError { url: url.to_owned(), problem };
        let uri: http::Uri = url.parse().map_err(|_| problem("is not a URL; write e.g. http://localhost:4566"))?;
        let (scheme, default_port) = match uri.scheme_str() {
            Some("http") => ("http", 80),
            Some("https") => ("https", 443),
            _ => return Err(problem("must begin with http:// or https://")),
        };
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(problem("names no host"));
        }
        let upstream_port = uri.port_u16().unwrap_or(default_port);
        let by_name = host != "localhost" && host.parse::<IpAddr>().is_err();
        let port = match (upstream_port == api_server::PORT, by_name) {
            (false, _) => upstream_port,
            (true, false) => api_server::PORT + 1,
            (true, true) => return Err(problem("has the Runtime API's port 9001; use another port")),
        };
        Ok(Self {
            scheme: scheme.to_owned(),
            upstream: (host.to_owned(), upstream_port),
            path: uri.path().trim_end_matches('/').to_owned(),
            by_name,
            port,
        })
    }

    /// The name that must lead to the listener.
    pub(crate) fn host_name(&self) -> Option<&str> {
        self.by_name.then_some(self.upstream.0.as_str())
    }

    /// `AWS_ENDPOINT_URL` in a sandbox whose listener has this address.
    pub(crate) fn url(&self, listener: SocketAddr) -> String {
        let Self { scheme, path, upstream: (host, port), .. } = self;
        if self.by_name { format!("{scheme}://{host}:{port}{path}") } else { format!("{scheme}://{listener}{path}") }
    }

    /// Forwards connections until dropped.
    pub(crate) async fn forward(self, listener: Listener) {
        let mut connections = JoinSet::new();
        // Said again only after it was reached: a function may try as often as it likes.
        let silent = Arc::new(AtomicBool::new(false));
        loop {
            // No order needed.
            tokio::select! {
                Some(_) = connections.join_next() => {}
                accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                    let Ok(mut inside) = accepted else {
                        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                        continue;
                    };
                    let (host, port) = self.upstream.clone();
                    let silent = Arc::clone(&silent);
                    connections.spawn(async move {
                        match TcpStream::connect((host.as_str(), port)).await {
                            Ok(mut outside) => {
                                silent.store(false, Ordering::Relaxed);
                                let _ = outside.set_nodelay(true);
                                // Either side may cut the connection at any time.
                                let _ = copy_bidirectional(&mut inside, &mut outside).await;
                            }
                            Err(error) if !silent.swap(true, Ordering::Relaxed) => {
                                tracing::warn!(%host, port, %error, "cannot reach the endpoint of functions");
                            }
                            Err(_) => {}
                        }
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_rewritten_and_a_name_is_kept() {
        let listener = "169.254.100.1:4566".parse().unwrap();
        let local = Endpoint::parse("http://localhost:4566/").unwrap();
        assert_eq!((local.url(listener).as_str(), local.host_name()), ("http://169.254.100.1:4566", None));
        let named = Endpoint::parse("https://aws.test/base").unwrap();
        assert_eq!((named.port, named.host_name()), (443, Some("aws.test")));
        assert_eq!(named.url(listener), "https://aws.test:443/base");
        assert_eq!(Endpoint::parse("http://127.0.0.1:9001").unwrap().port, 9002);
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        for url in ["", "localhost", "ftp://x", "http://named:9001"] {
            assert!(Endpoint::parse(url).is_err(), "{url}");
        }
    }
}
