//! The log's line of each invocation. To put one into words takes as long as much of the invocation, so that this is done
//! a little later, for many at once, and on a thread that serves no requests.

use std::sync::Arc;
use std::time::Duration;

use domain::{FunctionVersion, RequestId, Timeline};
use parking_lot::Mutex;

use super::timeline_json;

/// How long lines are gathered.
const GATHER: Duration = Duration::from_millis(40);

/// What a line says.
pub struct Entry {
    pub request_id: RequestId,
    pub version: Arc<FunctionVersion>,
    pub cold: bool,
    pub failed: bool,
    pub latency: Duration,
    pub timeline: Timeline,
}

/// Takes lines; those that wait when it is dropped are written then.
#[derive(Default)]
pub struct Journal(Mutex<Vec<Entry>>);

impl Journal {
    /// Whether anybody wants the lines.
    pub fn wanted() -> bool {
        tracing::enabled!(target: "emberbox::invoke", tracing::Level::INFO)
    }

    /// Called in a Tokio runtime.
    pub fn add(self: &Arc<Self>, entry: Entry) {
        let first = {
            let mut waiting = self.0.lock();
            waiting.push(entry);
            waiting.len() == 1
        };
        if first {
            let journal = Arc::clone(self);
            tokio::spawn(async move {
                tokio::time::sleep(GATHER).await;
                tokio::task::spawn_blocking(move || journal.write());
            });
        }
    }

    fn write(&self) {
        let waiting = std::mem::take(&mut *self.0.lock());
        for Entry { request_id, version, cold, failed, latency, timeline } in waiting {
            tracing::info!(
                target: "emberbox::invoke",
                %request_id, account = %version.account, function = %version.name, version = %version.version,
                start = %if cold { "cold" } else { "warm" }, failed, us = latency.as_micros() as u64,
                timeline = %timeline_json(&timeline),
            );
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.write();
    }
}
