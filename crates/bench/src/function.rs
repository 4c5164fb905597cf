//! The function that events are sent to: an echo that can be told to wait, so that a backlog can build up behind it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::Value;

use crate::load::{Connection, EVENT, Outcome};

/// Of an event: how often the function sends an answer that is refused; its own answer is then the median of the times
/// that this takes, in nanoseconds.
pub const EXCHANGES: &str = "exchanges";
/// Of an event: for how long the function waits before it answers, in milliseconds.
pub const WAIT_MS: &str = "waitMs";

/// Asks the Runtime API for events and answers them, for ever.
pub async fn run(runtime_api: &str) -> Result<()> {
    let address = runtime_api.parse().with_context(|| format!("the Runtime API's address {runtime_api}"))?;
    let mut api = Connection::open(address).await?;
    loop {
        let next = api.exchange(Method::GET, "/2018-06-01/runtime/invocation/next", &[], Bytes::new());
        let (parts, event) = next.await?;
        let id = parts.headers.get("Lambda-Runtime-Aws-Request-Id").context("an event without its request id")?;
        let parsed: Value = serde_json::from_slice(&event).context("the event is no JSON")?;
        if let Some(wait) = parsed[WAIT_MS].as_u64() {
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
        let path = format!("/2018-06-01/runtime/invocation/{}/response", id.to_str()?);
        let answer = match parsed[EXCHANGES].as_u64() {
            Some(times) => exchanges(&mut api, times).await?.to_string().into(),
            None => event,
        };
        api.exchange(Method::POST, &path, &[], answer).await?;
    }
}

async fn exchanges(api: &mut Connection, times: u64) -> Result<u64> {
    let mut taken = Outcome::default();
    for _ in 0..times {
        let sent = Instant::now();
        let path = "/2018-06-01/runtime/invocation/00000000-0000-0000-0000-000000000000/response";
        let (parts, _) = api.exchange(Method::POST, path, &[], Bytes::from_static(EVENT.as_bytes())).await?;
        ensure!(parts.status == StatusCode::BAD_REQUEST, "an answer to no request was taken: {}", parts.status);
        taken.latencies.saturating_record(sent.elapsed().as_nanos() as u64);
    }
    Ok(taken.latencies.value_at_quantile(0.5))
}
