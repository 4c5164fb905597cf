//! A manager's side of a worker's stream.

use std::time::Duration;

use domain::{SandboxState, WorkerEvents};
use tonic::{Status, Streaming};

use super::Claim;
use super::client::RemoteWorker;
use super::stream::HEARTBEAT;
use crate::convert;
use crate::failure::Failure;
use crate::pb;
use crate::pb::told::Event as Message;

/// Between two attempts: at first, and at most.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Without a message for this long the stream is taken for dead; there is a report every second.
pub(super) const SILENCE: Duration = HEARTBEAT.saturating_mul(5);

pub(super) async fn run(worker: &RemoteWorker, claim: &Claim, events: &dyn WorkerEvents) {
    let id = &worker.shared().id;
    let mut pause = PAUSE;
    loop {
        let mut claimed = false;
        let why = match once(worker, claim, events, &mut claimed).await {
            Ok(never) => match never {},
            Err(why) => why,
        };
        worker.shared().seen.write().report = None;
        if claimed {
            tracing::warn!(worker = %id, "lost a worker's stream: {why}; it is claimed again");
            events.lost(id);
            pause = PAUSE;
        } else {
            tracing::debug!(worker = %id, "cannot claim a worker's sandboxes: {why}");
        }
        tokio::time::sleep(pause).await;
        if pause < LONGEST_PAUSE && pause * 2 >= LONGEST_PAUSE {
            tracing::warn!(worker = %id, "still cannot claim a worker's sandboxes, and goes on trying: {why}");
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One stream; the text says how it ended.
async fn once(
    worker: &RemoteWorker,
    claim: &Claim,
    events: &dyn WorkerEvents,
    claimed: &mut bool,
) -> Result<std::convert::Infallible, String> {
    let message = pb::Claim {
        manager: claim.manager.to_string(),
        epoch: claim.epoch,
        managers: claim.managers.iter().map(ToString::to_string).collect(),
    };
    let mut client = worker.client();
    let answer = tokio::time::timeout(SILENCE, client.watch(message)).await.map_err(|_| silent())?;
    let mut stream = answer.map_err(|status| words(&status))?.into_inner();
    let id = &worker.shared().id;
    let mut sandboxes: Vec<SandboxState> = Vec::new();
    let mut first = true;
    loop {
        match next(&mut stream).await? {
            Message::Sandboxes(message) => sandboxes.extend(states(&message)),
            Message::Claimed(_) => {
                *claimed = true;
                events.claimed(id, std::mem::take(&mut sandboxes));
            }
            Message::Report(report) => {
                let (report, packages) = worker.shared().seen.write().reported(id, report, std::mem::take(&mut first));
                events.reported(report, packages);
            }
            Message::Answered(sandbox) => events.answered(named(&sandbox)?),
            Message::Idle(sandbox) => events.idle(named(&sandbox)?),
            Message::Dead(dead) => events.dead(named(&dead.sandbox)?, convert::reason(&dead.reason)),
            Message::Adopted(message) => {
                states(&message).into_iter().for_each(|state| events.adopted(id, state));
            }
        }
    }
}

/// The next message that this version knows.
async fn next(stream: &mut Streaming<pb::Told>) -> Result<Message, String> {
    loop {
        let message = tokio::time::timeout(SILENCE, stream.message()).await.map_err(|_| silent())?;
        match message.map_err(|status| words(&status))? {
            Some(pb::Told { event: Some(event) }) => return Ok(event),
            // Of a later version.
            Some(pb::Told { event: None }) => {}
            None => return Err("the worker ended it".to_owned()),
        }
    }
}

/// A version that cannot be read is one that this process cannot manage; its sandboxes stay with whoever can.
fn states(message: &pb::Sandboxes) -> Vec<SandboxState> {
    convert::sandbox_states(message).unwrap_or_else(|error| {
        tracing::error!(%error, "cannot read which sandboxes a worker has; is it of a much newer version?");
        Vec::new()
    })
}

fn named(sandbox: &[u8]) -> Result<domain::SandboxId, String> {
    convert::sandbox(sandbox).map_err(|error| error.to_string())
}

pub(super) fn silent() -> String {
    format!("silent for {SILENCE:?}")
}

pub(super) fn words(status: &Status) -> String {
    Failure::of_status(status).cause
}
