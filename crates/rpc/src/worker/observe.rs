//! The stream for Placement: how the worker is, and what came and went since the last message. Both ends.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use domain::{FunctionVersion, SandboxId, WorkerObserver};
use futures::Stream;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

use super::client::RemoteWorker;
use super::server::Inner;
use super::stream::{HEARTBEAT, REPORT_GAP};
use super::watch::{LONGEST_PAUSE, PAUSE, SILENCE, silent, words};
use crate::convert;
use crate::pb;

type Sandboxes = HashMap<SandboxId, (Arc<FunctionVersion>, bool)>;

/// The worker's end. It compares what there is with what it has told, so that a burst of changes is one message, and none is lost.
pub(super) struct Observing {
    hub: Arc<Inner>,
    changes: watch::Receiver<()>,
    last: Option<Instant>,
    due: Instant,
    packages: Arc<BTreeSet<String>>,
    told: Sandboxes,
}

impl Observing {
    pub(super) fn new(hub: Arc<Inner>) -> Self {
        let changes = hub.changes();
        Self { hub, changes, last: None, due: Instant::now(), packages: Arc::default(), told: HashMap::new() }
    }

    /// Ends with an error when the worker stops.
    pub(super) fn stream(self) -> impl Stream<Item = Result<pb::Observed, Status>> + Send {
        futures::stream::unfold(Some(self), |observing| async {
            let mut observing = observing?;
            let ended = observing.hub.ended();
            tokio::select! {
                biased;
                () = ended => Some((Err(Status::aborted("the worker stops")), None)),
                message = observing.next() => Some((Ok(message), Some(observing))),
            }
        })
    }

    async fn next(&mut self) -> pb::Observed {
        loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(self.due) => return self.message().await,
                Ok(()) = self.changes.changed() => {
                    let soonest = self.last.map_or(self.due, |last| last + REPORT_GAP);
                    self.due = self.due.min(soonest);
                }
            }
        }
    }

    async fn message(&mut self) -> pb::Observed {
        let now = Instant::now();
        let whole = self.last.is_none();
        self.last = Some(now);
        self.due = now + HEARTBEAT;
        // Before the report, so that nothing is named that is not in it. What comes in between is named the next time.
        let there = self.hub.sandboxes();
        let report = self.hub.report(&mut self.packages).await;
        let (added, initialised, gone) = changes(&self.told, &there);
        self.told = there;
        pb::Observed { report: Some(report), whole, added, initialised, gone }
    }
}

fn changes(before: &Sandboxes, now: &Sandboxes) -> (Vec<pb::ObservedSandbox>, Vec<bytes::Bytes>, Vec<bytes::Bytes>) {
    let new = now.iter().filter(|(id, _)| !before.contains_key(id));
    let added = new.map(|(id, (version, starting))| convert::observed_sandbox_message(*id, version, *starting));
    let was_starting = |id: &SandboxId| before.get(id).is_some_and(|(_, starting)| *starting);
    let initialised = now.iter().filter(|(id, (_, starting))| !starting && was_starting(id));
    let gone = before.keys().filter(|id| !now.contains_key(id));
    let bytes = |id: &SandboxId| convert::sandbox_bytes(*id);
    (added.collect(), initialised.map(|(id, _)| bytes(id)).collect(), gone.map(bytes).collect())
}

/// Placement's end, as long as it is polled.
pub(super) async fn run(worker: &RemoteWorker, observer: &dyn WorkerObserver) {
    let id = &worker.shared().id;
    let mut pause = PAUSE;
    loop {
        let mut heard = false;
        let why = match once(worker, observer, &mut heard).await {
            Ok(never) => match never {},
            Err(why) => why,
        };
        if heard {
            tracing::warn!(worker = %id, "nothing is heard of a worker any more: {why}; nothing is placed there until it is");
            observer.lost(id);
            pause = PAUSE;
        } else {
            tracing::debug!(worker = %id, "cannot observe a worker: {why}");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One stream; the text says how it ended.
async fn once(
    worker: &RemoteWorker,
    observer: &dyn WorkerObserver,
    heard: &mut bool,
) -> Result<std::convert::Infallible, String> {
    let id = &worker.shared().id;
    let mut client = worker.client();
    let answer = tokio::time::timeout(SILENCE, client.observe(pb::ObserveRequest {})).await;
    let mut stream = answer.map_err(|_| silent())?.map_err(|status| words(&status))?.into_inner();
    loop {
        let message = tokio::time::timeout(SILENCE, stream.message()).await.map_err(|_| silent())?;
        let Some(mut message) = message.map_err(|status| words(&status))? else {
            return Err("the worker ended it".to_owned());
        };
        let report = message.report.take().unwrap_or_default();
        let (report, packages) = worker.shared().seen.write().reported(id, report, message.whole);
        observer.observed(convert::observed(message, report, packages).map_err(|error| error.to_string())?);
        *heard = true;
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::convert::tests::version;

    #[test]
    fn tells_what_has_changed_and_nothing_else() {
        let version = Arc::new(version());
        let of = |sandboxes: &[(u128, bool)]| -> Sandboxes {
            let one =
                |(n, starting): &(u128, bool)| (SandboxId(Uuid::from_u128(*n)), (Arc::clone(&version), *starting));
            sandboxes.iter().map(one).collect()
        };
        let number = |bytes: &bytes::Bytes| convert::sandbox(bytes).unwrap().0.as_u128();
        let said = |before: &Sandboxes, now: &Sandboxes| {
            let (added, initialised, gone) = changes(before, now);
            let mut added: Vec<_> = added.iter().map(|one| (number(&one.sandbox), one.starting)).collect();
            added.sort_unstable();
            let ids = |ids: Vec<bytes::Bytes>| ids.iter().map(number).collect::<Vec<_>>();
            (added, ids(initialised), ids(gone))
        };
        let (first, then) = (of(&[(1, true), (2, false), (3, false)]), of(&[(1, false), (3, false), (4, false)]));
        assert_eq!(said(&of(&[]), &first), (vec![(1, true), (2, false), (3, false)], vec![], vec![]));
        assert_eq!(said(&first, &then), (vec![(4, false)], vec![1], vec![2]));
        assert_eq!(said(&then, &then), (vec![], vec![], vec![]));
    }
}
