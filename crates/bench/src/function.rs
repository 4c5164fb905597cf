//! The function that events are sent to: an echo that can be told to wait, so that a backlog can build up behind it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::Method;
use serde_json::Value;

use crate::load::Connection;

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
        api.exchange(Method::POST, &path, &[], event).await?;
    }
}
