//! Failed events once more: from the SQS queues where they ended up back onto the function's own queue.
//!
//! A message is deleted only after its event was queued again (202 means durable), so none is lost if this is interrupted:
//! what was taken and not deleted comes back to the queue when its visibility timeout is over.

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use domain::FunctionRef;
use lambda_api::operations::{GetFunctionConfiguration, GetFunctionEventInvokeConfig, Invoke};
use lambda_api::types::{GetFunctionConfigurationRequest, GetFunctionEventInvokeConfigRequest, InvocationRequest};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::cli::Events;
use crate::client::{ApiError, Client, Service};
use crate::commands::print_json;

/// Messages of one request; SQS gives no more.
const BATCH: u64 = 10;

/// Where failed events are.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    /// ARN of the queue.
    arn: String,
    /// It holds destination records rather than the events themselves.
    records: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Message {
    message_id: String,
    receipt_handle: String,
    body: String,
}

/// An event to queue again.
#[derive(Debug, PartialEq, Eq)]
struct Again {
    payload: Bytes,
    qualifier: Option<String>,
}

/// `emberbox events N redrive`
pub async fn run(args: Events) -> Result<ExitCode> {
    let mut client = Client::new(&args.target)?;
    if let Some(url) = &args.sqs_endpoint {
        client = client.with_sqs_endpoint(url)?;
    }
    let sources = sources(&client, &args).await?;
    if sources.is_empty() {
        bail!(
            "{} has neither a dead-letter queue nor an OnFailure destination that is an SQS queue, so there is nothing to \
             take failed events from",
            args.name
        );
    }
    let mut done = Vec::new();
    let mut left = 0;
    for source in &sources {
        let (moved, skipped) = redrive(&client, &args, source).await?;
        if !args.json {
            eprintln!("{moved} events of {} are queued again.", source.arn);
            if skipped > 0 {
                eprintln!("{skipped} messages are no events of {}; they stay there.", args.name);
            }
        }
        left += skipped;
        done.push(json!({"queue": source.arn, "redriven": moved, "left": skipped}));
    }
    if args.json {
        print_json(&done)?;
    }
    Ok(if left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The function's dead-letter queue and its OnFailure destination, as far as they are SQS queues.
async fn sources(client: &Client, args: &Events) -> Result<Vec<Source>> {
    let request =
        GetFunctionConfigurationRequest { function_name: args.name.clone(), qualifier: args.qualifier.clone() };
    let configuration = client.call::<GetFunctionConfiguration>(&request).await?;
    let request =
        GetFunctionEventInvokeConfigRequest { function_name: args.name.clone(), qualifier: args.qualifier.clone() };
    let destination = match client.call::<GetFunctionEventInvokeConfig>(&request).await {
        Ok(config) => config.destination_config.and_then(|config| config.on_failure?.destination),
        Err(error) if error.downcast_ref::<ApiError>().is_some_and(|e| e.status == 404) => None,
        Err(error) => return Err(error),
    };
    let dead_letters = configuration.dead_letter_config.and_then(|config| config.target_arn);
    let queue = |arn: Option<String>, records| {
        arn.filter(|arn| arn.split(':').nth(2) == Some("sqs")).map(|arn| Source { arn, records })
    };
    Ok([queue(dead_letters, false), queue(destination, true)].into_iter().flatten().collect())
}

/// How many messages were moved, and how many left.
async fn redrive(client: &Client, args: &Events, source: &Source) -> Result<(u64, u64)> {
    let url = queue_url(client, &source.arn).await?;
    // No more than there are now: an event that fails again comes back to the queue, and again, and again.
    let attributes =
        sqs(client, "GetQueueAttributes", json!({"QueueUrl": url, "AttributeNames": ["ApproximateNumberOfMessages"]}))
            .await?;
    let count = attributes["Attributes"]["ApproximateNumberOfMessages"].as_str().and_then(|count| count.parse().ok());
    let mut rest: u64 = count.context("read how many messages there are")?;
    let (mut moved, mut left) = (0, Vec::new());
    while rest > 0 {
        let request = json!({"QueueUrl": url, "MaxNumberOfMessages": rest.min(BATCH), "WaitTimeSeconds": 1});
        let answer = sqs(client, "ReceiveMessage", request).await?;
        let messages: Vec<Message> = match answer.get("Messages") {
            Some(messages) => serde_json::from_value(messages.clone()).context("read the messages")?,
            None => Vec::new(),
        };
        if messages.is_empty() {
            break;
        }
        for message in messages {
            rest = rest.saturating_sub(1);
            match again(&message.body, source.records, args) {
                Some(event) => {
                    queue_again(client, args, event).await?;
                    let request = json!({"QueueUrl": url, "ReceiptHandle": message.receipt_handle});
                    sqs(client, "DeleteMessage", request).await?;
                    moved += 1;
                }
                None => left.push(message),
            }
        }
    }
    for message in &left {
        // For others at once.
        let request = json!({"QueueUrl": url, "ReceiptHandle": message.receipt_handle, "VisibilityTimeout": 0});
        sqs(client, "ChangeMessageVisibility", request)
            .await
            .with_context(|| format!("give message {} back", message.message_id))?;
    }
    Ok((moved, left.len() as u64))
}

/// The event in a message; `None` if it is none of the function's.
fn again(body: &str, record: bool, args: &Events) -> Option<Again> {
    if !record {
        serde_json::from_str::<&RawValue>(body).ok()?;
        return Some(Again { payload: Bytes::copy_from_slice(body.as_bytes()), qualifier: args.qualifier.clone() });
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Record<'a> {
        request_context: Context,
        #[serde(borrow)]
        request_payload: &'a RawValue,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Context {
        function_arn: String,
    }
    let record: Record<'_> = serde_json::from_str(body).ok()?;
    let failed = FunctionRef::parse(&record.request_context.function_arn)?;
    let wanted = FunctionRef::parse(&args.name)?;
    (failed.name == wanted.name).then(|| Again {
        payload: Bytes::copy_from_slice(record.request_payload.get().as_bytes()),
        // What was invoked without a qualifier is recorded as `$LATEST`.
        qualifier: failed.qualifier.filter(|qualifier| qualifier != "$LATEST"),
    })
}

async fn queue_again(client: &Client, args: &Events, event: Again) -> Result<()> {
    // The name may have a qualifier of its own, which would have to be the same.
    let name = FunctionRef::parse(&args.name).filter(|name| name.qualifier.is_some() && event.qualifier.is_some());
    let input = InvocationRequest {
        function_name: name.map_or_else(|| args.name.clone(), |name| name.name),
        qualifier: event.qualifier,
        invocation_type: Some("Event".into()),
        payload: Some(event.payload),
        ..InvocationRequest::default()
    };
    client.call::<Invoke>(&input).await.map(drop)
}

async fn queue_url(client: &Client, arn: &str) -> Result<String> {
    let mut parts = arn.split(':').skip(4);
    let (Some(account), Some(name)) = (parts.next(), parts.next()) else { bail!("{arn} is no ARN of a queue") };
    let request = json!({"QueueName": name, "QueueOwnerAWSAccountId": account});
    let answer = sqs(client, "GetQueueUrl", request).await?;
    answer["QueueUrl"].as_str().map(str::to_owned).ok_or_else(|| anyhow!("SQS told no URL for {arn}"))
}

async fn sqs(client: &Client, operation: &str, request: Value) -> Result<Value> {
    client
        .call_json(Service::Sqs, "1.0", &format!("AmazonSQS.{operation}"), &request)
        .await
        .with_context(|| format!("SQS: {operation} (`--sqs-endpoint` or AWS_ENDPOINT_URL_SQS says where SQS is)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn args(line: &[&str]) -> Events {
        let line = ["emberbox", "events"].iter().chain(line);
        let Command::Events(events) = Cli::parse_from(line).command else { panic!("events") };
        events
    }

    #[test]
    fn a_dead_letter_is_the_event_itself() {
        let args = args(&["f", "redrive", "--qualifier", "live"]);
        let event = again(r#"{"a": 1.0}"#, false, &args).unwrap();
        assert_eq!((&event.payload[..], event.qualifier.as_deref()), (&br#"{"a": 1.0}"#[..], Some("live")));
        assert_eq!(again("no JSON", false, &args), None);
    }

    #[test]
    fn a_record_holds_the_event_and_says_whose_it_is() {
        let record = |arn: &str| {
            format!(r#"{{"requestContext":{{"functionArn":"{arn}"}},"requestPayload":{{"a": 1.0}},"version":"1.0"}}"#)
        };
        let arn = "arn:aws:lambda:us-east-1:000000000000:function:";
        let args = args(&["f", "redrive"]);
        let event = again(&record(&format!("{arn}f:$LATEST")), true, &args).unwrap();
        assert_eq!((&event.payload[..], event.qualifier), (&br#"{"a": 1.0}"#[..], None));
        let event = again(&record(&format!("{arn}f:7")), true, &args).unwrap();
        assert_eq!(event.qualifier.as_deref(), Some("7"));
        assert_eq!(again(&record(&format!("{arn}g:$LATEST")), true, &args), None);
        assert_eq!(again("{}", true, &args), None);
    }
}
