//! `emberbox logs`: CloudWatch Logs' FilterLogEvents, page by page, and again while following.

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use lambda_api::operations::GetFunctionConfiguration;
use lambda_api::types::GetFunctionConfigurationRequest;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::print;
use crate::cli::Logs;
use crate::client::{ApiError, Client, Service};

/// How often following asks.
const POLL: Duration = Duration::from_millis(500);
/// How far back following looks again for events that arrived late.
const LATE: i64 = 10_000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    #[serde(default)]
    events: Vec<Event>,
    next_token: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    event_id: String,
    log_stream_name: String,
    timestamp: i64,
    ingestion_time: i64,
    message: String,
}

/// Prints what a function wrote.
pub async fn run(client: &Client, args: Logs) -> Result<ExitCode> {
    let Group { name: group, mut unknown } = log_group(client, &args.name).await?;
    let mut start = now() - i64::try_from(args.since.as_millis()).context("--since is too long")?;
    let mut seen: HashSet<String> = HashSet::new();
    let mut newest = start;
    let mut first = true;
    loop {
        let mut fresh = HashSet::new();
        let mut token = None;
        loop {
            let page = match page(client, &group, start, token).await {
                Ok(page) => page,
                Err(error) if no_group(&error) => match unknown.take() {
                    Some(unknown) => return Err(unknown),
                    None => Page { events: Vec::new(), next_token: None },
                },
                Err(error) => return Err(error),
            };
            for event in page.events {
                newest = newest.max(event.timestamp);
                if !seen.contains(&event.event_id) && !fresh.contains(&event.event_id) {
                    print(shown(&event, args.json)?.as_bytes())?;
                }
                fresh.insert(event.event_id);
            }
            token = page.next_token;
            if token.is_none() {
                break;
            }
        }
        if !args.follow {
            if fresh.is_empty() {
                eprintln!("Nothing in {group} within the time asked for (`--since`).");
            }
            return Ok(ExitCode::SUCCESS);
        }
        if first && fresh.is_empty() {
            eprintln!("Waiting for {group}; Ctrl-C ends this.");
        }
        first = false;
        unknown = None;
        // Only what is asked for again has to be remembered.
        start = start.max(newest - LATE);
        seen = fresh;
        tokio::time::sleep(POLL).await;
    }
}

/// What a function wrote within the last `since`; the first page of it.
pub async fn recent(client: &Client, name: &str, since: Duration) -> Result<String> {
    let group = log_group(client, name).await?.name;
    let start = now() - i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    let page = page(client, &group, start, None).await?;
    Ok(page.events.iter().map(|event| line(&event.message)).collect())
}

struct Group {
    name: String,
    /// The function is not there, in the server's words. Its log may be.
    unknown: Option<anyhow::Error>,
}

/// The group that the function logs to; the default one if it exists no more.
async fn log_group(client: &Client, name: &str) -> Result<Group> {
    let request = GetFunctionConfigurationRequest { function_name: name.to_owned(), ..Default::default() };
    match client.call::<GetFunctionConfiguration>(&request).await {
        Ok(configuration) => {
            let default = || format!("/aws/lambda/{}", configuration.function_name.as_deref().unwrap_or(name));
            let name = configuration.logging_config.and_then(|logging| logging.log_group).unwrap_or_else(default);
            Ok(Group { name, unknown: None })
        }
        Err(error) if error.downcast_ref::<ApiError>().is_some_and(|e| e.status == 404) => {
            let name = domain::FunctionRef::parse(name).map_or_else(|| name.to_owned(), |reference| reference.name);
            Ok(Group { name: format!("/aws/lambda/{name}"), unknown: Some(error) })
        }
        Err(error) => Err(error),
    }
}

async fn page(client: &Client, group: &str, start: i64, token: Option<String>) -> Result<Page> {
    let mut body = json!({"logGroupName": group, "startTime": start});
    if let Some(token) = token {
        body["nextToken"] = token.into();
    }
    let answer = client.call_json(Service::Logs, "1.1", "Logs_20140328.FilterLogEvents", &body).await?;
    serde_json::from_value(answer).context("read the answer of FilterLogEvents")
}

/// A function that has not logged yet has no group.
fn no_group(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ApiError>().is_some_and(|e| e.code == "ResourceNotFoundException")
}

/// A line for people, or one of JSON.
fn shown(event: &Event, json: bool) -> Result<String> {
    if json { Ok(line(&serde_json::to_string(event).context("make JSON")?)) } else { Ok(line(&event.message)) }
}

fn line(message: &str) -> String {
    format!("{}\n", message.trim_end_matches('\n'))
}

fn now() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}
