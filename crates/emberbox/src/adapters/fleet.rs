//! What a process of a fleet answers where one that does everything has the part itself.

use std::sync::Arc;

use async_trait::async_trait;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use bytes::Bytes;
use control_plane::SnapshotFault;
use domain::{FunctionVersion, VersionKey};
use frontend::Identity;
use frontend::ports;
use http::Response;

use super::Catalog;

const NO_QUEUES: &str = "This Emberbox is one of a fleet, which serves no queues; name a service that does by events.sqs_endpoint in \
                         the configuration, and use that one";

/// The runtimes that functions may be made for are those of this host's files; workers install them when they need them.
pub struct RuntimesOfWorkers(pub Catalog);

#[async_trait]
impl control_plane::RuntimeCatalog for RuntimesOfWorkers {
    fn check(&self, runtime: &str) -> Result<(), String> {
        self.0.check(runtime)
    }

    fn version_arn(&self, runtime: &str, region: &str) -> String {
        self.0.version_arn(runtime, region)
    }

    async fn ensure(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

/// Which worker would keep a snapshot, and which others could restore it, is not settled yet.
pub struct NoSnapshots;

#[async_trait]
impl control_plane::SnapshotCatalog for NoSnapshots {
    async fn take(&self, _: Arc<FunctionVersion>) -> Result<(), SnapshotFault> {
        Err(SnapshotFault::Unsupported("A fleet keeps no snapshots.".to_owned()))
    }

    async fn remove(&self, _: &VersionKey) -> Result<(), String> {
        Ok(())
    }
}

/// A fleet's frontends have no queues of their own: each would have others.
#[derive(Clone, Debug)]
pub struct NoQueues;

impl HttpClient for NoQueues {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for NoQueues {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        HttpConnectorFuture::ready(Err(ConnectorError::user(NO_QUEUES.into())))
    }
}

#[async_trait]
impl ports::Sqs for NoQueues {
    fn label(&self, _: &str) -> &'static str {
        "SQS"
    }

    async fn answer(&self, _: &Identity, _: &str, _: &str, _: Option<&str>, _: Bytes) -> Response<Bytes> {
        let body = serde_json::json!({
            "__type": "com.amazonaws.sqs#UnsupportedOperation",
            "message": NO_QUEUES,
        });
        let response = Response::builder().status(400).header("content-type", "application/x-amz-json-1.0");
        response.body(body.to_string().into()).expect("the parts are valid")
    }
}
