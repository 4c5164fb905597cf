//! `emberbox events`: how a function's queued events are doing, and failed ones once more.

mod redrive;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::Request;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::{print, print_json};
use crate::cli::{Events, EventsAction};
use crate::client::{ApiError, Client, Service};
use crate::timeline::{self, Mark};

/// How often following and waiting ask.
const POLL: Duration = Duration::from_millis(500);
/// How soon waiting asks for the first time; an idle function needs no more.
const FIRST_POLL: Duration = Duration::from_millis(20);

/// What the server tells.
#[derive(Deserialize, Serialize, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
struct Stats {
    depth: u64,
    waiting: u64,
    in_flight: u64,
    retrying: u64,
    oldest_age_ms: Option<u64>,
    received: u64,
    succeeded: u64,
    dropped: u64,
    dead_lettered: u64,
    delivery_errors: u64,
    undelivered: u64,
}

/// `emberbox events`
pub async fn run(client: &Client, args: Events) -> Result<ExitCode> {
    if args.action == Some(EventsAction::Redrive) {
        return redrive::run(args).await;
    }
    if let Some(id) = &args.request {
        let event = followed(client, &args.name, id).await?;
        if args.json {
            print_json(&event)?
        } else {
            print(timeline::draw(&event.timeline).as_bytes())?
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut before: Option<Stats> = None;
    loop {
        let stats = stats(client, &args.name).await?;
        // The age alone changes all the time.
        let unchanged = |before: &Stats| *before == Stats { oldest_age_ms: before.oldest_age_ms, ..stats.clone() };
        if !before.as_ref().is_some_and(unchanged) {
            match (args.json, args.follow) {
                (true, false) => print_json(&stats)?,
                (true, true) => print(format!("{}\n", serde_json::to_string(&stats)?).as_bytes())?,
                (false, _) => {
                    let head = if before.is_none() { head() } else { String::new() };
                    print(format!("{head}{}", row(&stats)).as_bytes())?;
                }
            }
        }
        if !args.follow {
            return Ok(ExitCode::SUCCESS);
        }
        before = Some(stats);
        tokio::time::sleep(POLL).await;
    }
}

async fn stats(client: &Client, name: &str) -> Result<Stats> {
    let body = get(client, name, "").await?;
    serde_json::from_slice(&body).context("read the answer about the events")
}

/// What the server tells of one event.
#[derive(Deserialize, Serialize)]
struct Followed {
    attempts: u32,
    settled: bool,
    timeline: Vec<Mark>,
}

async fn followed(client: &Client, name: &str, request_id: &str) -> Result<Followed> {
    let body = get(client, name, &format!("/{request_id}")).await?;
    serde_json::from_slice(&body).context("read the timeline")
}

/// The timeline of an event until its first attempt ended, or it was settled without one, for which it waits; nothing from
/// a server that keeps none.
pub async fn first_attempt(client: &Client, name: &str, request_id: &str) -> Result<Vec<Mark>> {
    let mut pause = FIRST_POLL;
    loop {
        let answer = match followed(client, name, request_id).await {
            Ok(answer) => answer,
            Err(error) if error.downcast_ref::<ApiError>().is_some_and(|e| e.status < 500) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        if answer.settled {
            return Ok(answer.timeline);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL);
    }
}

async fn get(client: &Client, name: &str, rest: &str) -> Result<Bytes> {
    let name = utf8_percent_encode(name, NON_ALPHANUMERIC);
    let request = Request::get(format!("/_emberbox/events/{name}{rest}")).body(Bytes::new());
    let response = client.send(Service::Lambda, request.context("make the request")?, None).await?;
    Ok(response.into_body())
}

/// What is in the queue now, and what was counted since the server started; wide enough for most numbers.
const COLUMNS: [&str; 9] =
    ["QUEUED", "OLDEST", "WAITING", "RUNNING", "RETRYING", "RECEIVED", "SUCCEEDED", "DROPPED", "DEAD-LETTERED"];

fn head() -> String {
    line(COLUMNS.map(str::to_owned))
}

fn row(stats: &Stats) -> String {
    let age = stats.oldest_age_ms.map_or_else(|| "-".to_owned(), |ms| timeline::show(ms.saturating_mul(1000)));
    let failed = match stats.undelivered {
        0 => stats.dead_lettered.to_string(),
        lost => format!("{}, {lost} not delivered", stats.dead_lettered),
    };
    let counts = [stats.waiting, stats.in_flight, stats.retrying, stats.received, stats.succeeded, stats.dropped];
    let [waiting, running, retrying, received, succeeded, dropped] = counts.map(|count| count.to_string());
    line([stats.depth.to_string(), age, waiting, running, retrying, received, succeeded, dropped, failed])
}

fn line(cells: [String; COLUMNS.len()]) -> String {
    let widths = COLUMNS.map(|column| column.len().max(7));
    let cells: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
    format!("{}\n", cells.join("  ").trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_under_the_head() {
        let stats = Stats {
            depth: 12,
            waiting: 3,
            in_flight: 2,
            retrying: 7,
            oldest_age_ms: Some(4200),
            received: 120,
            succeeded: 100,
            dropped: 8,
            dead_lettered: 7,
            delivery_errors: 4,
            undelivered: 1,
        };
        let expected = "\
QUEUED   OLDEST   WAITING  RUNNING  RETRYING  RECEIVED  SUCCEEDED  DROPPED  DEAD-LETTERED
12       4.20 s   3        2        7         120       100        8        7, 1 not delivered
";
        assert_eq!(head() + &row(&stats), expected);
    }
}
