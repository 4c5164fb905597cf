//! One poller: receive, filter, gather, invoke, delete; one batch at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};

use super::mapping::Shared;
use crate::backoff::Backoff;
use crate::batch::{Batch, Batcher, Item, Next, PAYLOAD_LIMIT};
use crate::message::Message;
use crate::metrics::count;
use crate::ports::{Invocation, InvokeError};
use crate::response::{Verdict, judge};

/// Between tries of a source that fails.
const SOURCE_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Between tries of a throttled invocation.
const THROTTLE_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Between tries to delete what is done; while it is hidden, it pays to insist.
const DELETE_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Messages in one request (SQS quota).
const REQUEST_MAX: usize = 10;
/// Requests at once to delete one batch.
const DELETES: usize = 8;

/// Polls until it is not wanted any more.
pub(super) async fn run(shared: Arc<Shared>, index: u32) {
    let mapping = &shared.parts.mapping;
    let mut batcher = Batcher::new(mapping.batch_size, mapping.batching_window, PAYLOAD_LIMIT);
    let mut backoff = Backoff::new(SOURCE_RETRY.0, SOURCE_RETRY.1);
    while shared.wants(index) {
        let Some(_busy) = gather(&shared, index, &mut batcher, &mut backoff).await else { continue };
        // FIFO groups of which a message failed: what comes after it has to wait until it is visible again.
        let mut blocked = BTreeSet::new();
        while let Some(mut batch) = batcher.take() {
            batch.items.retain(|item| item.group.as_ref().is_none_or(|group| !blocked.contains(group)));
            if !batch.items.is_empty() {
                blocked.extend(process(&shared, &batch).await);
            }
        }
    }
}

/// Counts a poller as busy as long as it lives.
struct Busy<'a>(&'a AtomicU32);

impl<'a> Busy<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Receives until the batch is to be sent. `None`: there is nothing, and the poller may not be wanted any more.
async fn gather<'a>(shared: &'a Shared, index: u32, batcher: &mut Batcher, backoff: &mut Backoff) -> Option<Busy<'a>> {
    let mut busy = None;
    loop {
        let Next::Receive { max, wait } = batcher.next(shared.now()) else { return busy };
        let received = tokio::select! {
            biased;
            // A stop does not wait for messages. Those that are on their way at this moment become visible again.
            () = shared.stopped() => {
                while let Some(batch) = batcher.take() {
                    release(shared, &batch).await;
                }
                return None;
            }
            received = shared.parts.source.receive(&shared.parts.queue, max, wait) => received,
        };
        match received {
            Ok(messages) => {
                if backoff.is_failing() {
                    backoff.succeeded();
                    shared.report(None);
                }
                let counter = if messages.is_empty() { &shared.load.empty } else { &shared.load.filled };
                counter.fetch_add(1, Relaxed);
                take(shared, batcher, messages).await;
            }
            Err(error) => {
                shared.source_failed(&error);
                let wait = backoff.failed();
                tokio::select! {
                    () = shared.stopped() => {}
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
        if batcher.is_empty() {
            if !shared.wants(index) {
                return None;
            }
        } else if busy.is_none() {
            busy = Some(Busy::new(&shared.load.busy));
        }
    }
}

/// Adds the messages that the mapping takes, and deletes the others.
async fn take(shared: &Shared, batcher: &mut Batcher, messages: Vec<Message>) {
    let (now, queue) = (shared.now(), &shared.parts.queue);
    let mut dropped = Vec::new();
    count(&shared.parts.metrics.polled, messages.len());
    for message in messages {
        if shared.parts.filters.take(&message, queue) {
            let item = Item {
                group: message.group().map(str::to_owned),
                trace_header: message.trace_header().map(str::to_owned),
                record: message.record(queue),
                id: message.id,
                receipt: message.receipt,
            };
            batcher.push(now, item);
        } else {
            dropped.push(message.receipt);
        }
    }
    count(&shared.parts.metrics.filtered_out, dropped.len());
    delete(shared, dropped, now).await;
}

/// Invokes the function with a batch and deletes what it is done with. Returns the FIFO groups in which one failed.
async fn process(shared: &Shared, batch: &Batch) -> BTreeSet<String> {
    let metrics = &shared.parts.metrics;
    count(&metrics.invoked, batch.items.len());
    let verdict = match invoke(shared, batch).await {
        Ok(answer) if shared.parts.mapping.report_batch_item_failures => {
            judge(&answer, |id| batch.items.iter().any(|item| item.id == id))
        }
        Ok(_) => Verdict::Succeeded,
        Err(problem) => Verdict::Failed(problem),
    };
    let failed = |item: &&Item| match &verdict {
        Verdict::Succeeded => false,
        Verdict::Partly(ids) => ids.contains(&item.id),
        Verdict::Failed(_) => true,
    };
    let (failed, done): (Vec<&Item>, Vec<&Item>) = batch.items.iter().partition(failed);
    count(&metrics.failed, failed.len());
    count(&metrics.deleted, done.len());
    if let Verdict::Failed(problem) = &verdict {
        shared.load.failed.fetch_add(1, Relaxed);
        shared.report(Some(problem.clone()));
    } else {
        shared.report(None);
    }
    delete(shared, done.into_iter().map(|item| item.receipt.clone()).collect(), batch.since).await;
    failed.into_iter().filter_map(|item| item.group.clone()).collect()
}

/// The function's answer. While it is throttled, the same batch is tried again for as long as its messages are hidden
/// (AWS: "Lambda continues to retry the message until the message's timestamp exceeds your queue's visibility timeout").
async fn invoke(shared: &Shared, batch: &Batch) -> Result<Bytes, String> {
    let mapping = &shared.parts.mapping;
    let invocation = Invocation {
        function: mapping.function.clone(),
        qualifier: mapping.qualifier.clone(),
        payload: batch.event().into(),
        trace_header: batch.items.iter().find_map(|item| item.trace_header.clone()),
    };
    let mut backoff = Backoff::new(THROTTLE_RETRY.0, THROTTLE_RETRY.1);
    loop {
        let problem = match shared.parts.invoker.invoke(invocation.clone()).await {
            Ok(answer) => return Ok(answer),
            Err(InvokeError::Function(_)) => return Err("Function call failed".to_owned()),
            Err(InvokeError::Refused(problem)) => return Err(problem),
            Err(InvokeError::Throttled(problem)) => problem,
        };
        shared.load.failed.fetch_add(1, Relaxed);
        shared.report(Some(problem.clone()));
        let wait = backoff.failed();
        if shared.now() + wait >= batch.since + shared.visibility() {
            return Err(problem);
        }
        tokio::select! {
            () = shared.stopped() => {
                release(shared, batch).await;
                return Err(problem);
            }
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Deletes messages that were received at `since`; what cannot be deleted as long as they are hidden comes again.
async fn delete(shared: &Shared, receipts: Vec<String>, since: Duration) {
    let requests: Vec<Vec<String>> = receipts.chunks(REQUEST_MAX).map(<[_]>::to_vec).collect();
    let deletes = stream::iter(requests).map(|receipts| delete_request(shared, receipts, since));
    deletes.buffer_unordered(DELETES).for_each(|()| async {}).await;
}

async fn delete_request(shared: &Shared, mut receipts: Vec<String>, since: Duration) {
    let mut backoff = Backoff::new(DELETE_RETRY.0, DELETE_RETRY.1);
    while !receipts.is_empty() {
        match shared.parts.source.delete(&shared.parts.queue, &receipts).await {
            Ok(left) => receipts = left,
            Err(error) => shared.source_failed(&error),
        }
        let wait = backoff.failed();
        if receipts.is_empty() || shared.now() + wait >= since + shared.visibility() {
            break;
        }
        tokio::time::sleep(wait).await;
    }
    if !receipts.is_empty() {
        let (mapping, messages) = (&shared.parts.mapping.uuid, receipts.len());
        tracing::warn!(mapping, messages, "messages that are done could not be deleted; they will come again");
    }
}

/// Gives messages back before their time, so that another process has them soon.
async fn release(shared: &Shared, batch: &Batch) {
    let receipts: Vec<String> = batch.items.iter().map(|item| item.receipt.clone()).collect();
    // From the last to the first, as a FIFO queue has to see them.
    for receipts in receipts.chunks(REQUEST_MAX).rev() {
        let released = shared.parts.source.change_visibility(&shared.parts.queue, receipts, Duration::ZERO).await;
        if let Err(error) = released {
            tracing::debug!(%error, "give messages back; they become visible again later");
            return;
        }
    }
}
