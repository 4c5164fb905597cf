//! The embedded SQS, for the Frontend.

use async_trait::async_trait;
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

    async fn answer(&self, caller: &Identity, endpoint: &str, target: &str, body: Bytes) -> Response<Bytes> {
        self.0.handle(caller.account.as_str(), &caller.region, endpoint, target, body).await
    }
}
