//! One manager's stream: first all of its sandboxes, then what becomes of them, and reports in between.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use domain::SandboxState;
use futures::Stream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::Status;

use super::hub::Event;
use super::server::Inner;
use crate::convert;
use crate::pb;
use crate::pb::told::Event as Message;

/// The stream's heartbeat.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(1);
/// Between two reports: a storm of cold starts changes it thousands of times a second.
pub(super) const REPORT_GAP: Duration = Duration::from_millis(20);

pub(super) struct Watching {
    hub: Arc<Inner>,
    number: u64,
    opening: VecDeque<Message>,
    events: mpsc::Receiver<Event>,
    changes: watch::Receiver<()>,
    last_report: Option<Instant>,
    due: Instant,
    packages: Arc<BTreeSet<String>>,
}

impl Watching {
    /// `own` are the manager's sandboxes at a moment after the stream's `events` began.
    pub(super) fn new(hub: Arc<Inner>, number: u64, own: &[SandboxState], events: mpsc::Receiver<Event>) -> Self {
        let sandboxes = convert::sandboxes_messages(own).into_iter().map(Message::Sandboxes);
        let opening = sandboxes.chain([Message::Claimed(pb::Claimed {})]).collect();
        let changes = hub.changes();
        let due = Instant::now();
        Self { hub, number, opening, events, changes, last_report: None, due, packages: Arc::default() }
    }

    /// Ends with an error when the manager claims anew, lags behind, or the worker stops.
    pub(super) fn stream(self) -> impl Stream<Item = Result<pb::Told, Status>> + Send {
        futures::stream::unfold(Some(self), |watching| async {
            let mut watching = watching?;
            match watching.next().await {
                Some(event) => Some((Ok(pb::Told { event: Some(event) }), Some(watching))),
                None => {
                    let why = "this stream was replaced by a newer claim, lagged behind, or the worker stops";
                    Some((Err(Status::aborted(why)), None))
                }
            }
        })
    }

    async fn next(&mut self) -> Option<Message> {
        if let Some(message) = self.opening.pop_front() {
            return Some(message);
        }
        // The first report before events: a manager that knows of a sandbox knows its worker.
        if self.last_report.is_none() {
            return Some(self.report().await);
        }
        loop {
            tokio::select! {
                // The report first: it is due at most every 20 ms, and events may never cease.
                biased;
                () = tokio::time::sleep_until(self.due) => return Some(self.report().await),
                event = self.events.recv() => return Some(message(event?)),
                Ok(()) = self.changes.changed() => {
                    let soonest = self.last_report.map_or(self.due, |last| last + REPORT_GAP);
                    self.due = self.due.min(soonest);
                }
            }
        }
    }

    async fn report(&mut self) -> Message {
        let now = Instant::now();
        self.last_report = Some(now);
        self.due = now + HEARTBEAT;
        Message::Report(self.hub.report(&mut self.packages).await)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.hub.end(self.number);
    }
}

fn message(event: Event) -> Message {
    match event {
        Event::Answered(sandbox) => Message::Answered(convert::sandbox_bytes(sandbox)),
        Event::Idle(sandbox) => Message::Idle(convert::sandbox_bytes(sandbox)),
        Event::Dead(sandbox, reason) => Message::Dead(pb::Dead {
            sandbox: convert::sandbox_bytes(sandbox),
            reason: convert::reason_word(reason).to_owned(),
        }),
        Event::Adopted(state) => {
            // One state makes one message.
            Message::Adopted(convert::sandboxes_messages(&[state]).pop().unwrap_or_default())
        }
    }
}
