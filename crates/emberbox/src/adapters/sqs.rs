//! The embedded SQS, for the Frontend and for Emberbox's own clients.

use async_trait::async_trait;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use bytes::Bytes;
use frontend::Identity;
use frontend::ports;
use http::Response;

/// The queues of this process.
pub struct Sqs(pub ::sqs::SqsService);

#[async_trait]
impl ports::Sqs for Sqs {
    fn label(&self, target: &str) -> &'static str {
        sqs_api::operation(target).map_or("SQS", |operation| operation.name())
    }

    async fn answer(
        &self,
        caller: &Identity,
        endpoint: &str,
        target: &str,
        trace: Option<&str>,
        body: Bytes,
    ) -> Response<Bytes> {
        self.0.handle(caller.account.as_str(), &caller.region, endpoint, target, trace, body).await
    }
}

/// Takes requests to this process's queues out of AWS's SDK without a network: they need neither a certificate that the
/// SDK trusts nor the secrets of the accounts. The access key id is the account on whose behalf a request is made, and no
/// account has access to another's queues.
#[derive(Clone, Debug)]
pub struct OwnQueues(pub ::sqs::SqsService);

impl HttpClient for OwnQueues {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for OwnQueues {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let queues = self.0.clone();
        HttpConnectorFuture::new(async move {
            let unsigned = || ConnectorError::user("a request to Emberbox's own queues is not signed".into());
            let headers = request.headers();
            let (account, region) = headers.get("authorization").and_then(scope).ok_or_else(unsigned)?;
            let target = headers.get("x-amz-target").unwrap_or_default();
            let base_url = request.uri().trim_end_matches('/');
            let body = Bytes::copy_from_slice(request.body().bytes().unwrap_or_default());
            let response = queues.handle(account, region, base_url, target, headers.get("x-amzn-trace-id"), body).await;
            HttpResponse::try_from(response.map(Into::into)).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

/// Access key id and region of a signature: `AWS4-HMAC-SHA256 Credential=<key>/<date>/<region>/sqs/aws4_request, …`.
fn scope(authorization: &str) -> Option<(&str, &str)> {
    let (_, credential) = authorization.split_once("Credential=")?;
    let mut parts = credential.split('/');
    Some((parts.next()?, parts.nth(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_tells_who_calls() {
        let header = "AWS4-HMAC-SHA256 Credential=123456789012/20260101/eu-west-1/sqs/aws4_request, SignedHeaders=host";
        assert_eq!(scope(header), Some(("123456789012", "eu-west-1")));
        assert_eq!((scope(""), scope("Credential=a/b")), (None, None));
    }
}
