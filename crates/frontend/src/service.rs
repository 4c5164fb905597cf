//! From request to response: which part of the API it is for, and what every response carries.

use std::net::SocketAddr;
use std::sync::Arc;

use domain::Clock;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;

use crate::auth::Authenticator;
use crate::body::{Body, whole};
use crate::config::Config;

/// The parts that the Frontend works with.
pub struct Deps {
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// One installation's API, shared by all connections.
pub struct Service {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) authenticator: Authenticator,
    pub(crate) tasks: TaskTracker,
}

impl Service {
    pub(crate) fn new(config: &Config, deps: Deps) -> Self {
        Self { clock: deps.clock, authenticator: Authenticator::new(config), tasks: TaskTracker::new() }
    }

    /// From now on `/readyz` says no.
    pub(crate) fn drain(&self) {
        self.tasks.close();
    }

    /// Waits for the invocations that outlive their connections.
    pub(crate) async fn finished(&self) {
        self.tasks.wait().await;
    }

    pub(crate) async fn handle(&self, _peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
        let status = match request.uri().path() {
            "/healthz" => StatusCode::OK,
            _ => StatusCode::NOT_FOUND,
        };
        let mut response = Response::new(whole(""));
        *response.status_mut() = status;
        response
    }
}
