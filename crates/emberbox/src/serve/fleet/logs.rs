//! The logs of a fleet: each worker keeps those of what ran on it, and a frontend asks all of them.
//!
//! ```text
//!  ports::Logs ◄── Workers ──rpc, at once──► LogsServer ── Own ── adapters::Logs ── LogStore, on worker-1
//!       place of each worker in one token └► …                                             on worker-2
//! ```
//!
//! A worker that does not answer is passed over with a warning, and keeps its place: what it has comes when it answers again. What a
//! worker has that left comes no more.

mod merge;
mod place;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use domain::AccountId;
use frontend::ports::{self, LogEvent, LogGroup, LogPage, LogQuery, LogStream, LogsError};
use futures::future::join_all;
use membership::{Member, Membership, Role};
use rpc::{Channels, LogsFault, RemoteLogs, WorkerLogs, pb};

use merge::{Page, merge};
use place::{Place, Places, Until, event_id};

/// How long a request waits for a worker. One that is dead is out of the view soon.
const PATIENCE: Duration = Duration::from_secs(2);
/// A page ends after so many bytes of messages, as a worker's does, and CloudWatch Logs'.
const PAGE_BYTES: usize = 1 << 20;

/// The logs of all workers in the view.
pub struct Workers {
    membership: Membership,
    channels: Channels,
}

impl Workers {
    /// Those in the views of this member.
    pub fn new(membership: Membership, channels: Channels) -> Self {
        Self { membership, channels }
    }

    /// Asks each worker that is there, whatever its state, what `ask` makes of its name; `None` is not asked. Those that do not
    /// answer are left out, as long as any does.
    async fn all<T, F>(&self, what: &str, ask: impl Fn(&Arc<str>, RemoteLogs) -> Option<F>) -> Result<Vec<T>, LogsError>
    where
        F: Future<Output = Result<T, LogsFault>>,
    {
        let view = self.membership.view();
        let asked = view.live(Role::Worker).filter_map(|member: &Member| {
            let id: Arc<str> = member.id.as_str().into();
            let peer = rpc::Member::new(rpc::Role::Worker, Arc::clone(&id));
            let call = ask(&id, RemoteLogs::new(self.channels.channel(&member.address, &peer), PATIENCE))?;
            Some(async move { (id, call.await) })
        });
        let mut answers = Vec::new();
        let mut failed = None;
        for (worker, answer) in join_all(asked).await {
            match answer {
                Ok(answer) => answers.push(answer),
                Err(LogsFault::Invalid(_)) => return Err(LogsError::Token),
                Err(LogsFault::Failed(error)) => {
                    tracing::warn!(%worker, error, "{what} without those of this worker");
                    failed.get_or_insert_with(|| format!("worker {worker}: {error}"));
                }
            }
        }
        match failed {
            Some(error) if answers.is_empty() => Err(LogsError::Failed(format!("no worker answers; {error}"))),
            _ => Ok(answers),
        }
    }
}

#[async_trait]
impl ports::Logs for Workers {
    async fn groups(&self, account: &AccountId, region: &str) -> Result<Vec<String>, LogsError> {
        let request = pb::LogGroupsRequest { account: account.to_string(), region: region.to_owned() };
        let ask = |_: &Arc<str>, worker: RemoteLogs| {
            let request = request.clone();
            Some(async move { worker.groups(request).await })
        };
        let answers = self.all("listed log groups", ask).await?;
        Ok(merge::groups(answers.into_iter().map(|answer| answer.names)))
    }

    async fn streams(&self, group: &LogGroup) -> Result<Vec<LogStream>, LogsError> {
        let ask = |_: &Arc<str>, worker: RemoteLogs| {
            let request = pb::LogStreamsRequest { group: Some(sent(group)) };
            Some(async move { worker.streams(request).await })
        };
        let answers = self.all("listed log streams", ask).await?;
        Ok(merge::streams(answers.into_iter().map(|answer| answer.streams)))
    }

    async fn events(&self, group: &LogGroup, query: LogQuery) -> Result<LogPage, LogsError> {
        let LogQuery { streams, stream_prefix, start, end, pattern, limit, from, until } = query;
        let from = from.as_deref().map(Place::parse).transpose()?;
        let until = until.as_deref().map(Place::parse).transpose()?;
        let request = pb::LogEventsRequest {
            group: Some(sent(group)),
            streams,
            stream_prefix,
            start,
            end,
            pattern,
            limit: limit as u64,
            from: None,
            until: None,
        };
        let ask = |id: &Arc<str>, worker: RemoteLogs| {
            let until = match until.as_ref().map_or(Until::End, |place| place.until(id)) {
                Until::Nothing => return None,
                Until::Place(place) => Some(place),
                Until::End => None,
            };
            let from = from.as_ref().and_then(|place| place.from(id));
            let request = pb::LogEventsRequest { from, until, ..request.clone() };
            let id = Arc::clone(id);
            Some(async move {
                let pb::LogEventsAnswer { events, next, more } = worker.events(request).await?;
                Ok(Page { worker: id, events: events.into(), next, more })
            })
        };
        let pages = self.all("read logs", ask).await?;
        let merged = merge(pages, limit, PAGE_BYTES);
        let mut places = match from {
            Some(Place::Page(places)) => places,
            Some(Place::Event(worker, place)) => Places::from([(worker, place)]),
            None => Places::new(),
        };
        places.extend(merged.places);
        let live: BTreeSet<Arc<str>> =
            self.membership.view().live(Role::Worker).map(|member| member.id.as_str().into()).collect();
        let event = |(worker, event): (Arc<str>, pb::LogEvent)| LogEvent {
            id: event_id(&worker, &event.place),
            stream: event.stream,
            timestamp: event.timestamp,
            message: event.message,
        };
        Ok(LogPage {
            events: merged.events.into_iter().map(event).collect(),
            next: Place::token(places, &live),
            more: merged.more,
        })
    }
}

/// The logs of the worker in this process, for the frontends.
pub struct Own(pub Arc<dyn ports::Logs>);

#[async_trait]
impl WorkerLogs for Own {
    async fn groups(&self, request: pb::LogGroupsRequest) -> Result<pb::LogGroupsAnswer, LogsFault> {
        let account = account(&request.account)?;
        let names = self.0.groups(&account, &request.region).await.map_err(fault)?;
        Ok(pb::LogGroupsAnswer { names })
    }

    async fn streams(&self, request: pb::LogStreamsRequest) -> Result<pb::LogStreamsAnswer, LogsFault> {
        let streams = self.0.streams(&received(request.group)?).await.map_err(fault)?;
        let stream = |LogStream { name, first, last, bytes }| pb::LogStream { name, first, last, bytes };
        Ok(pb::LogStreamsAnswer { streams: streams.into_iter().map(stream).collect() })
    }

    async fn events(&self, request: pb::LogEventsRequest) -> Result<pb::LogEventsAnswer, LogsFault> {
        let pb::LogEventsRequest { group, streams, stream_prefix, start, end, pattern, limit, from, until } = request;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let query = LogQuery { streams, stream_prefix, start, end, pattern, limit, from, until };
        let LogPage { events, next, more } = self.0.events(&received(group)?, query).await.map_err(fault)?;
        let event =
            |LogEvent { id, stream, timestamp, message }| pb::LogEvent { place: id, stream, timestamp, message };
        Ok(pb::LogEventsAnswer { events: events.into_iter().map(event).collect(), next, more })
    }
}

fn sent(group: &LogGroup) -> pb::LogGroup {
    let LogGroup { account, region, name } = group;
    pb::LogGroup { account: account.to_string(), region: region.clone(), name: name.clone() }
}

fn received(group: Option<pb::LogGroup>) -> Result<LogGroup, LogsFault> {
    let pb::LogGroup { account: owner, region, name } =
        group.ok_or_else(|| LogsFault::Failed("the request names no log group".to_owned()))?;
    Ok(LogGroup { account: account(&owner)?, region, name })
}

fn account(text: &str) -> Result<AccountId, LogsFault> {
    AccountId::parse(text).ok_or_else(|| LogsFault::Failed(format!("{text:?} is no account")))
}

fn fault(error: LogsError) -> LogsFault {
    match error {
        LogsError::Token => LogsFault::Invalid(error.to_string()),
        LogsError::Failed(cause) => LogsFault::Failed(cause),
    }
}
