//! The calls, through the AWS SDK; S3's one call is that of `packages`.

mod clients;
mod queues;

use std::time::Duration;

use aws_sdk_eventbridge::types::PutEventsRequestEntry;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use bytes::Bytes;
use packages::S3Config;
use pollers::Target;

use crate::config::{Credentials, DeliveryConfig, Endpoint};
use crate::failure::{Call, Failure, does_not_exist};
use crate::message::Text;
use clients::{Connection, PerRegion};
use queues::{Queue, QueueUrls};

/// All services.
pub(crate) struct Aws {
    config: DeliveryConfig,
    environment: Option<Credentials>,
    sqs: PerRegion<aws_sdk_sqs::Client>,
    sns: PerRegion<aws_sdk_sns::Client>,
    eventbridge: PerRegion<aws_sdk_eventbridge::Client>,
    queues: QueueUrls,
}

impl Aws {
    pub fn new(config: DeliveryConfig) -> Self {
        Self {
            config,
            environment: Credentials::from_env(),
            sqs: PerRegion::default(),
            sns: PerRegion::default(),
            eventbridge: PerRegion::default(),
            queues: QueueUrls::default(),
        }
    }

    /// Sends to a queue, for a function of `account`. `trace` becomes the system attribute that the queue's consumer
    /// continues.
    pub async fn send_message(
        &self,
        account: &str,
        target: &Target,
        queue: &str,
        text: &Text<'_>,
        trace: Option<&str>,
    ) -> Result<(), Failure> {
        let call = call("sqs:SendMessage", &self.config.sqs, "events.sqs_endpoint");
        let connection = match &self.config.sqs_client {
            None => self.connection(&call, &self.config.sqs, &target.region, &target.account)?,
            Some(_) => self.connected(&self.config.sqs, &target.region, Credentials::of_account(account)),
        };
        let http = self.config.sqs_client.as_ref();
        let client = self.sqs.get(&connection, || clients::sqs(&connection, http));
        let queue = Queue { region: target.region.clone(), account: target.account.clone(), name: queue.to_owned() };
        if let Some(url) = self.queues.known(&queue) {
            match queues::send(&client, &url, text, trace).await {
                // deleted, and perhaps made again elsewhere
                Err(error) if code(&error).is_some_and(does_not_exist) => self.queues.forget(&queue),
                sent => return sent.map_err(|error| call.failed(&error)),
            }
        }
        let url = queues::look_up(&client, &queue).await.map_err(|error| match error {
            queues::LookUpError::Sdk(error) => Call { action: "sqs:GetQueueUrl", ..call }.failed(&*error),
            queues::LookUpError::NoUrl => Failure::temporary(format!(
                "sqs:GetQueueUrl at {} answered without a URL; check {}",
                call.endpoint, call.setting
            )),
        })?;
        queues::send(&client, &url, text, trace).await.map_err(|error| call.failed(&error))?;
        self.queues.learn(queue, url);
        Ok(())
    }

    /// Publishes to a topic.
    pub async fn publish(&self, target: &Target, text: &Text<'_>, trace: Option<&str>) -> Result<(), Failure> {
        let call = call("sns:Publish", &self.config.sns, "events.sns_endpoint");
        let connection = self.connection(&call, &self.config.sns, &target.region, &target.account)?;
        let client = self.sns.get(&connection, || clients::sns(&connection));
        let mut publish = client.publish().topic_arn(&target.arn).message(text.body.as_ref());
        for attribute in &text.attributes {
            let value = aws_sdk_sns::types::MessageAttributeValue::builder()
                .data_type(attribute.kind)
                .string_value(&attribute.value)
                .build()
                .expect("it has a type");
            publish = publish.message_attributes(attribute.name, value);
        }
        // SNS has no parameter for it: it passes the header on
        let trace = trace.map(str::to_owned);
        let publish = publish.customize().mutate_request(move |request| {
            if let Some(trace) = &trace {
                // what is no header's value is no trace header
                let _ = request.headers_mut().try_insert("x-amzn-trace-id", trace.clone());
            }
        });
        publish.send().await.map(drop).map_err(|error| call.failed(&error))
    }

    /// Puts one event on a bus.
    pub async fn put_event(&self, target: &Target, entry: PutEventsRequestEntry) -> Result<(), Failure> {
        let call = call("events:PutEvents", &self.config.eventbridge, "events.eventbridge_endpoint");
        let connection = self.connection(&call, &self.config.eventbridge, &target.region, &target.account)?;
        let client = self.eventbridge.get(&connection, || clients::eventbridge(&connection));
        let answer = client.put_events().entries(entry).send().await.map_err(|error| call.failed(&error))?;
        match answer.entries().iter().find_map(|entry| Some((entry.error_code()?, entry.error_message()))) {
            Some((code, message)) => Err(call.answered(200, code, message.unwrap_or_default())),
            None if answer.failed_entry_count() > 0 => Err(call.answered(200, "InternalFailure", "")),
            None => Ok(()),
        }
    }

    /// Writes an object. A bucket's ARN has neither region nor account: they are the function's.
    pub async fn put_object(
        &self,
        bucket: &str,
        key: &str,
        region: &str,
        account: &str,
        body: &str,
    ) -> Result<(), Failure> {
        let call = call("s3:PutObject", &self.config.s3, "events.s3_endpoint");
        let Connection { url, credentials, .. } = self.connection(&call, &self.config.s3, region, account)?;
        let config = S3Config {
            endpoint: url,
            region: region.to_owned(),
            access_key: credentials.access_key,
            secret_key: credentials.secret_key,
            session_token: credentials.session_token,
        };
        let put = packages::put_object(&config, bucket, key, Bytes::copy_from_slice(body.as_bytes()));
        match tokio::time::timeout(self.config.call_timeout, put).await {
            Ok(answer) => answer.map_err(|error| call.s3_failed(&error)),
            Err(_) => Err(call.silent()),
        }
    }

    fn connection(
        &self,
        call: &Call<'_>,
        endpoint: &Endpoint,
        region: &str,
        account: &str,
    ) -> Result<Connection, Failure> {
        let credentials = endpoint.credentials_for(account, self.environment.as_ref()).ok_or_else(|| {
            Failure::refused(format!(
                "{} at AWS needs credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or set {} if the target is \
                 not at AWS",
                call.action, call.setting
            ))
        })?;
        Ok(self.connected(endpoint, region, credentials))
    }

    fn connected(&self, endpoint: &Endpoint, region: &str, credentials: Credentials) -> Connection {
        Connection {
            url: endpoint.url.clone(),
            region: region.to_owned(),
            credentials,
            connect_timeout: self.config.connect_timeout,
            call_timeout: self.config.call_timeout,
            // leaves time for a second try
            attempt_timeout: self.config.call_timeout.mul_f32(0.6).max(Duration::from_millis(1)),
        }
    }
}

fn call<'a>(action: &'static str, endpoint: &'a Endpoint, setting: &'static str) -> Call<'a> {
    Call { action, endpoint: endpoint.url.as_deref().unwrap_or("AWS"), setting }
}

/// The code in a service's answer.
fn code<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Option<&str> {
    error.as_service_error().and_then(ProvideErrorMetadata::code)
}
