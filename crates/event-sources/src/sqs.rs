//! SQS, or whatever speaks its protocol, by the AWS SDK.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use aws_credential_types::Credentials;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{BehaviorVersion, Region, SharedHttpClient};
use aws_sdk_sqs::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, MessageSystemAttributeName,
    QueueAttributeName,
};
use bytes::Bytes;
use domain::{AccountId, QueueArn};
use parking_lot::Mutex;

use crate::message::{Attribute, Message};
use crate::ports::{QueueSource, SourceError};

/// As AWS's own errors name it; the JSON protocol has another name for it.
const NO_QUEUE: (&str, &str) = ("AWS.SimpleQueueService.NonExistentQueue", "The specified queue does not exist.");

/// Until a connection stands.
const CONNECT: Duration = Duration::from_secs(5);
/// Until an answer is there, beside the wait for messages.
const ANSWER: Duration = Duration::from_secs(10);

/// Where the queues are.
#[derive(Clone, Debug, Default)]
pub struct SqsConfig {
    /// e.g. `http://127.0.0.1:9324`; `None`: AWS, in the region of the queue.
    pub endpoint: Option<String>,
    /// When absent: those in the environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`). When
    /// there are none either, an `endpoint` gets the queue's account as access key id, which is how servers that check no
    /// signatures tell accounts apart.
    pub credentials: Option<SqsCredentials>,
    /// Takes the place of the network, with an `endpoint` for the error messages. It is told the queue's account as access
    /// key id, whatever credentials there are.
    pub http_client: Option<SharedHttpClient>,
}

/// An access key.
#[derive(Clone)]
pub struct SqsCredentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: String,
    /// `AWS_SESSION_TOKEN`.
    pub session_token: Option<String>,
}

impl std::fmt::Debug for SqsCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqsCredentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

impl SqsCredentials {
    fn from_env() -> Option<Self> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Some(Self {
            access_key_id: variable("AWS_ACCESS_KEY_ID")?,
            secret_access_key: variable("AWS_SECRET_ACCESS_KEY")?,
            session_token: variable("AWS_SESSION_TOKEN"),
        })
    }
}

impl SqsConfig {
    fn credentials_for(&self, account: &AccountId) -> Option<SqsCredentials> {
        let by_account = || {
            self.endpoint.as_ref().map(|_| SqsCredentials {
                access_key_id: account.to_string(),
                secret_access_key: "unchecked".to_owned(),
                session_token: None,
            })
        };
        let given = self.credentials.clone().filter(|_| self.http_client.is_none());
        given.or_else(by_account)
    }
}

/// The queues of an SQS-compatible service. Retries nothing by itself.
#[derive(Debug)]
pub struct SqsQueues {
    config: SqsConfig,
    /// By account and region.
    clients: Mutex<HashMap<(AccountId, String), Client>>,
    urls: Mutex<HashMap<QueueArn, String>>,
}

impl SqsQueues {
    /// Connects when it is first asked for something. Where `config` has no credentials, those in the environment are
    /// read now.
    pub fn new(config: SqsConfig) -> Self {
        let credentials = config.credentials.or_else(SqsCredentials::from_env);
        let config = SqsConfig { credentials, ..config };
        Self { config, clients: Mutex::default(), urls: Mutex::default() }
    }

    fn client(&self, queue: &QueueArn, operation: &'static str) -> Result<Client, SourceError> {
        let credentials = self.config.credentials_for(&queue.account).ok_or_else(|| SourceError {
            operation,
            queue: queue.to_string(),
            code: None,
            message:
                "SQS at AWS needs credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the endpoint of \
                      your own SQS"
                    .to_owned(),
        })?;
        let mut clients = self.clients.lock();
        let client = clients.entry((queue.account.clone(), queue.region.clone()));
        Ok(client.or_insert_with(|| self.connect(&queue.region, credentials)).clone())
    }

    fn connect(&self, region: &str, credentials: SqsCredentials) -> Client {
        let SqsCredentials { access_key_id, secret_access_key, session_token } = credentials;
        let credentials = Credentials::new(access_key_id, secret_access_key, session_token, None, "emberbox");
        let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT).build();
        let mut config = aws_sdk_sqs::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region.to_owned()))
            .credentials_provider(credentials)
            .timeout_config(timeouts)
            // The pollers back off by themselves, and say why.
            .retry_config(RetryConfig::disabled());
        config.set_endpoint_url(self.config.endpoint.clone());
        config.set_http_client(self.config.http_client.clone());
        Client::from_conf(config.build())
    }

    async fn url(&self, client: &Client, queue: &QueueArn, operation: &'static str) -> Result<String, SourceError> {
        if let Some(url) = self.urls.lock().get(queue) {
            return Ok(url.clone());
        }
        let request = client.get_queue_url().queue_name(&queue.name).queue_owner_aws_account_id(queue.account.as_str());
        let answer = self.answer(operation, queue, Duration::ZERO, request.send()).await?;
        let url = answer.queue_url.unwrap_or_default();
        self.urls.lock().insert(queue.clone(), url.clone());
        Ok(url)
    }

    /// What the service answers within `wait` and the time that any answer may take.
    async fn answer<T, E, R>(
        &self,
        operation: &'static str,
        queue: &QueueArn,
        wait: Duration,
        request: impl Future<Output = Result<T, SdkError<E, R>>>,
    ) -> Result<T, SourceError>
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
        R: std::fmt::Debug,
    {
        let limit = wait + ANSWER;
        match tokio::time::timeout(limit, request).await {
            Ok(answer) => answer.map_err(|error| self.failed(operation, queue, &error)),
            Err(_) => Err(SourceError {
                operation,
                queue: queue.to_string(),
                code: None,
                message: format!("it takes longer than {} s", limit.as_secs()),
            }),
        }
    }

    fn failed<E, R>(&self, operation: &'static str, queue: &QueueArn, error: &SdkError<E, R>) -> SourceError
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
        R: std::fmt::Debug,
    {
        let (code, message) = match error.code() {
            Some("QueueDoesNotExist" | "AWS.SimpleQueueService.NonExistentQueue") => {
                // It may be made anew, and have another URL then.
                self.urls.lock().remove(queue);
                (Some(NO_QUEUE.0.to_owned()), NO_QUEUE.1.to_owned())
            }
            Some(code) => (Some(code.to_owned()), error.message().unwrap_or_default().to_owned()),
            None => (None, DisplayErrorContext(error).to_string()),
        };
        SourceError { operation, queue: queue.to_string(), code, message }
    }
}

#[async_trait]
impl QueueSource for SqsQueues {
    async fn visibility_timeout(&self, queue: &QueueArn) -> Result<Duration, SourceError> {
        // AWS names this operation when it refuses a mapping for its queue.
        const OPERATION: &str = "ReceiveMessage";
        let client = self.client(queue, OPERATION)?;
        let url = self.url(&client, queue, OPERATION).await?;
        let request =
            client.get_queue_attributes().queue_url(url).attribute_names(QueueAttributeName::VisibilityTimeout);
        let answer = self.answer(OPERATION, queue, Duration::ZERO, request.send()).await?;
        let seconds = answer.attributes().and_then(|all| all.get(&QueueAttributeName::VisibilityTimeout));
        seconds.and_then(|text| text.parse().ok()).map(Duration::from_secs).ok_or_else(|| SourceError {
            operation: OPERATION,
            queue: queue.to_string(),
            code: None,
            message: "it does not tell the queue's VisibilityTimeout".to_owned(),
        })
    }

    async fn receive(&self, queue: &QueueArn, max: usize, wait: Duration) -> Result<Vec<Message>, SourceError> {
        const OPERATION: &str = "ReceiveMessage";
        let client = self.client(queue, OPERATION)?;
        let url = self.url(&client, queue, OPERATION).await?;
        let request = client
            .receive_message()
            .queue_url(url)
            .max_number_of_messages(i32::try_from(max).unwrap_or(i32::MAX))
            .wait_time_seconds(i32::try_from(wait.as_secs()).unwrap_or(i32::MAX))
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .message_attribute_names("All");
        let answer = self.answer(OPERATION, queue, wait, request.send()).await?;
        Ok(answer.messages.unwrap_or_default().into_iter().map(message).collect())
    }

    async fn delete(&self, queue: &QueueArn, receipts: &[String]) -> Result<Vec<String>, SourceError> {
        const OPERATION: &str = "DeleteMessage";
        let client = self.client(queue, OPERATION)?;
        let url = self.url(&client, queue, OPERATION).await?;
        let mut request = client.delete_message_batch().queue_url(url);
        for (i, receipt) in receipts.iter().enumerate() {
            let entry = DeleteMessageBatchRequestEntry::builder().id(i.to_string()).receipt_handle(receipt).build();
            request = request.entries(entry.expect("id and receipt handle are set"));
        }
        let answer = self.answer(OPERATION, queue, Duration::ZERO, request.send()).await?;
        let left = answer.failed.iter().filter_map(|entry| receipts.get(entry.id.parse::<usize>().ok()?));
        Ok(left.cloned().collect())
    }

    async fn change_visibility(
        &self,
        queue: &QueueArn,
        receipts: &[String],
        timeout: Duration,
    ) -> Result<(), SourceError> {
        const OPERATION: &str = "ChangeMessageVisibility";
        let client = self.client(queue, OPERATION)?;
        let url = self.url(&client, queue, OPERATION).await?;
        let mut request = client.change_message_visibility_batch().queue_url(url);
        for (i, receipt) in receipts.iter().enumerate() {
            let entry = ChangeMessageVisibilityBatchRequestEntry::builder()
                .id(i.to_string())
                .receipt_handle(receipt)
                .visibility_timeout(i32::try_from(timeout.as_secs()).unwrap_or(i32::MAX));
            request = request.entries(entry.build().expect("id and receipt handle are set"));
        }
        self.answer(OPERATION, queue, Duration::ZERO, request.send()).await?;
        Ok(())
    }
}

fn message(message: aws_sdk_sqs::types::Message) -> Message {
    let attribute = |attribute: aws_sdk_sqs::types::MessageAttributeValue| Attribute {
        data_type: attribute.data_type,
        string: attribute.string_value,
        binary: attribute.binary_value.map(|blob| Bytes::from(blob.into_inner())),
    };
    let attributes = message.attributes.unwrap_or_default().into_iter();
    let message_attributes = message.message_attributes.unwrap_or_default().into_iter();
    Message {
        id: message.message_id.unwrap_or_default(),
        receipt: message.receipt_handle.unwrap_or_default(),
        body: message.body.unwrap_or_default(),
        md5_of_body: message.md5_of_body.unwrap_or_default(),
        md5_of_attributes: message.md5_of_message_attributes,
        attributes: attributes.map(|(name, value)| (name.as_str().to_owned(), value)).collect(),
        message_attributes: message_attributes.map(|(name, value)| (name, attribute(value))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> QueueArn {
        QueueArn::parse("arn:aws:sqs:us-east-1:000000000000:q").unwrap()
    }

    /// Time is paused, so that it goes on only when all there is to do is to wait.
    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_says_nothing_is_given_up() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Some(format!("http://{}", silent.local_addr().unwrap()));
        let queues = SqsQueues::new(SqsConfig { endpoint, ..SqsConfig::default() });
        let start = tokio::time::Instant::now();
        let error = queues.receive(&queue(), 10, Duration::from_secs(20)).await.unwrap_err();
        assert!(start.elapsed() <= Duration::from_secs(31), "{:?}", start.elapsed());
        assert_eq!((error.operation, error.code.as_deref()), ("ReceiveMessage", None));
    }

    #[tokio::test]
    async fn nobody_listens() {
        let queues = SqsQueues::new(SqsConfig { endpoint: Some("http://127.0.0.1:1".into()), ..SqsConfig::default() });
        let error = queues.visibility_timeout(&queue()).await.unwrap_err().to_string();
        assert!(error.starts_with("Error occurred while ReceiveMessage from arn:aws:sqs:"), "{error}");
        assert!(error.contains("Connection refused"), "{error}");
    }

    #[test]
    fn credentials_fall_back_to_the_account_for_a_server_of_ones_own() {
        let account = AccountId::parse("123456789012").unwrap();
        let given = SqsCredentials {
            access_key_id: "AKIA".into(),
            secret_access_key: "secret".into(),
            session_token: Some("token".into()),
        };
        let key = |config: &SqsConfig| config.credentials_for(&account).map(|credentials| credentials.access_key_id);
        let mut config = SqsConfig::default();
        assert_eq!(key(&config), None, "AWS wants real ones");
        config.endpoint = Some("http://h".into());
        assert_eq!(key(&config).as_deref(), Some("123456789012"));
        config.credentials = Some(given);
        assert_eq!(key(&config).as_deref(), Some("AKIA"));
        let shown = format!("{config:?}");
        assert!(!shown.contains("secret") && !shown.contains("token"), "{shown}");
    }
}
