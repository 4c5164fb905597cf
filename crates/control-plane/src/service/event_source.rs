//! Event source mappings: the operations, the copy in memory, and what the pollers follow.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use domain::{AccountId, EventSourceMapping, FunctionArn, FunctionRef, QueueArn};
use lambda_api::ApiError;
use lambda_api::types::{
    CreateEventSourceMappingRequest, DeleteEventSourceMappingRequest, EventSourceMappingConfiguration,
    GetEventSourceMappingRequest, ListEventSourceMappingsRequest, ListEventSourceMappingsResponse,
    UpdateEventSourceMappingRequest,
};
use parking_lot::{Mutex, RwLock};
use store::{Commit, Op, Precondition, Record, Snapshot};
use tokio::sync::watch;

use super::{ControlPlane, Inner, TRIES, service_error, too_busy};
use crate::name::{Caller, Target};
use crate::page::page;
use crate::record::{FUNCTION, account_key, from_bytes, function_key, to_bytes};
use crate::rules::event_source::{
    EventSourceRecord, Source, Transition, check_visibility, duplicate, missing, no_function,
};
use crate::rules::invalid;
use crate::rules::tags::no_event_source;

/// Kind of [`EventSourceRecord`]s; key: [`mapping_key`].
pub(super) const EVENT_SOURCE: &str = "event-source-mapping";

/// Looks at a queue before a mapping to it is accepted.
#[async_trait]
pub trait EventSourceCheck: Send + Sync + 'static {
    /// The queue's visibility timeout, for a function of `account`.
    ///
    /// # Errors
    /// It cannot be read from; the text goes to the caller, e.g. `Error occurred while ReceiveMessage. SQS Error Code:
    /// AWS.SimpleQueueService.NonExistentQueue. SQS Error Message: The specified queue does not exist.`
    async fn visibility_timeout(&self, account: &AccountId, queue: &QueueArn) -> Result<Duration, String>;
}

/// All mappings, as the store has them.
#[derive(Default)]
pub(super) struct EventSources {
    stored: RwLock<BTreeMap<String, Arc<Stored>>>,
    /// Counts the changes that pollers have to know of.
    changes: watch::Sender<u64>,
    /// What keeps a mapping from working at the moment, by UUID; of this process.
    problems: Mutex<HashMap<String, String>>,
    check: OnceLock<Arc<dyn EventSourceCheck>>,
    /// Held while mappings are changed, so that no two of one source and function come about.
    turn: tokio::sync::Mutex<()>,
}

struct Stored {
    mapping: EventSourceRecord,
    version: u64,
}

fn mapping_key(function: &FunctionArn, uuid: &str) -> String {
    format!("{}/{uuid}", account_key(function.account.as_str(), &function.region))
}

impl ControlPlane {
    /// From now on, new mappings are refused to queues that `check` cannot read from. Only the first call counts.
    pub fn check_event_sources_with(&self, check: Arc<dyn EventSourceCheck>) {
        // A second one is ignored, as said above.
        let _ = self.inner.event_sources.check.set(check);
    }

    /// The mappings whose sources are to be polled now: enabled, and with a function that is there.
    pub fn served_event_sources(&self) -> Vec<EventSourceMapping> {
        let stored = self.inner.event_sources.stored.read();
        let served = stored.values().filter(|stored| self.inner.problem(&stored.mapping).is_none_or(|p| !p.lasting));
        served.filter_map(|stored| stored.mapping.served()).collect()
    }

    /// Changes whenever [`Self::served_event_sources`] may.
    pub fn event_source_changes(&self) -> watch::Receiver<u64> {
        self.inner.event_sources.changes.subscribe()
    }

    /// What keeps a mapping from working, for its `LastProcessingResult`; `None`: nothing any more.
    pub fn report_event_source(&self, uuid: &str, problem: Option<String>) {
        let mut problems = self.inner.event_sources.problems.lock();
        match problem {
            Some(problem) => drop(problems.insert(uuid.to_owned(), problem)),
            None => drop(problems.remove(uuid)),
        }
    }

    /// CreateEventSourceMapping.
    pub async fn create_event_source_mapping(
        &self,
        caller: &Caller,
        request: CreateEventSourceMappingRequest,
    ) -> Result<EventSourceMappingConfiguration, ApiError> {
        let inner = &self.inner;
        let function = inner.mapped_function(caller, "CreateEventSourceMapping", &request.function_name)?;
        let uuid = uuid::Uuid::new_v4().to_string();
        let new = EventSourceRecord::create(&request, function, uuid, inner.unix_time())?;
        inner.check_source(&new).await?;
        let key = mapping_key(&new.function, &new.uuid);
        let _turn = inner.event_sources.turn.lock().await;
        if let Some(other) = inner.event_sources.twin(&new) {
            return Err(duplicate(&new, &other));
        }
        let put = Op::put(EVENT_SOURCE, key, to_bytes(&new)).when(Precondition::DoesNotExist);
        inner.commit(vec![put]).await.map_err(|error| service_error(&error))?;
        Ok(new.view(None))
    }

    /// GetEventSourceMapping.
    pub async fn get_event_source_mapping(
        &self,
        caller: &Caller,
        request: GetEventSourceMappingRequest,
    ) -> Result<EventSourceMappingConfiguration, ApiError> {
        let stored = self.inner.event_sources.get(&caller_key(caller, &request.uuid)).ok_or_else(missing)?;
        Ok(self.inner.view(&stored.mapping))
    }

    /// ListEventSourceMappings: of a source, of a function (with the qualifier that is given, and only with it), or all.
    pub async fn list_event_source_mappings(
        &self,
        caller: &Caller,
        request: ListEventSourceMappingsRequest,
    ) -> Result<ListEventSourceMappingsResponse, ApiError> {
        let function = match &request.function_name {
            Some(name) => Some(Target::own(caller, "ListEventSourceMappings", name, None)?.full_arn()),
            None => None,
        };
        let all = self.inner.event_sources.of(&caller_key(caller, ""));
        let wanted = all.into_iter().filter(|(_, stored)| {
            function.as_ref().is_none_or(|arn| *arn == stored.mapping.function_arn())
                && request.event_source_arn.as_ref().is_none_or(|arn| *arn == stored.mapping.source_arn())
        });
        let wanted = wanted.map(|(key, stored)| (key, self.inner.view(&stored.mapping)));
        let (mappings, next_marker) = page(wanted, request.marker.as_deref(), request.max_items)?;
        Ok(ListEventSourceMappingsResponse { event_source_mappings: Some(mappings), next_marker })
    }

    /// UpdateEventSourceMapping: what the request leaves out stays.
    pub async fn update_event_source_mapping(
        &self,
        caller: &Caller,
        request: UpdateEventSourceMappingRequest,
    ) -> Result<EventSourceMappingConfiguration, ApiError> {
        let inner = &self.inner;
        let key = caller_key(caller, &request.uuid);
        let stored = inner.event_sources.get(&key).ok_or_else(missing)?;
        let function = match &request.function_name {
            Some(name) => Some(inner.mapped_function(caller, "UpdateEventSourceMapping", name)?),
            None => None,
        };
        if let Some((function, qualifier)) = function.clone() {
            inner.check_source(&EventSourceRecord { function, qualifier, ..stored.mapping.clone() }).await?;
        }
        let rule = |mapping: &mut EventSourceRecord| {
            mapping.update(&request, function.clone(), inner.unix_time())?;
            match inner.event_sources.twin(mapping) {
                Some(other) => Err(duplicate(mapping, &other)),
                None => Ok(()),
            }
        };
        let changed = inner.change_mapping(&key, rule).await?;
        // Whatever was wrong, it has to show again.
        self.report_event_source(&request.uuid, None);
        Ok(inner.view(&changed))
    }

    /// DeleteEventSourceMapping. Polling stops; messages that are being worked on are still deleted if that goes well.
    pub async fn delete_event_source_mapping(
        &self,
        caller: &Caller,
        request: DeleteEventSourceMappingRequest,
    ) -> Result<EventSourceMappingConfiguration, ApiError> {
        let now = self.inner.unix_time();
        let key = caller_key(caller, &request.uuid);
        let changed = self.inner.change_mapping(&key, |mapping| mapping.delete(now)).await?;
        Ok(changed.view(None))
    }
}

fn caller_key(caller: &Caller, uuid: &str) -> String {
    format!("{}/{uuid}", account_key(caller.account.as_str(), &caller.region))
}

/// Why a mapping does not work.
struct Problem {
    text: String,
    /// There is no use in polling.
    lasting: bool,
}

impl Inner {
    /// The function, version or alias that a request names; it must be there.
    fn mapped_function(
        &self,
        caller: &Caller,
        operation: &str,
        name: &str,
    ) -> Result<(FunctionArn, Option<String>), ApiError> {
        if FunctionRef::parse(name).is_none() {
            return Err(no_function());
        }
        let target = Target::own(caller, operation, name, None)?;
        let entry = self.catalog.function(&function_key(&target.arn)).ok_or_else(no_function)?;
        entry.function.version(target.qualifier.as_deref()).map_err(|_| no_function())?;
        Ok((target.arn, target.qualifier))
    }

    /// Asks the source itself, if there is somebody who can.
    async fn check_source(&self, mapping: &EventSourceRecord) -> Result<(), ApiError> {
        let Some(check) = self.event_sources.check.get() else { return Ok(()) };
        let Source::Sqs { queue, .. } = &mapping.source;
        let visibility = check.visibility_timeout(&mapping.function.account, queue).await.map_err(invalid)?;
        let entry = self.catalog.function(&function_key(&mapping.function)).ok_or_else(no_function)?;
        let version = entry.function.version(mapping.qualifier.as_deref()).map_err(|_| no_function())?;
        check_visibility(visibility, version.settings.timeout)
    }

    fn view(&self, mapping: &EventSourceRecord) -> EventSourceMappingConfiguration {
        mapping.view(self.problem(mapping).map(|problem| problem.text).as_deref())
    }

    fn problem(&self, mapping: &EventSourceRecord) -> Option<Problem> {
        let entry = self.catalog.function(&function_key(&mapping.function));
        let there = entry.is_some_and(|entry| entry.function.version(mapping.qualifier.as_deref()).is_ok());
        if !there {
            return Some(Problem { text: format!("Function not found: {}", mapping.function_arn()), lasting: true });
        }
        let reported = self.event_sources.problems.lock().get(&mapping.uuid).cloned();
        reported.map(|text| Problem { text, lasting: false })
    }

    fn unix_time(&self) -> f64 {
        let since = self.clock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        since.as_millis() as f64 / 1000.0
    }

    /// Applies a rule to a mapping and stores the result.
    async fn change_mapping(
        &self,
        key: &str,
        rule: impl Fn(&mut EventSourceRecord) -> Result<(), ApiError>,
    ) -> Result<EventSourceRecord, ApiError> {
        let _turn = self.event_sources.turn.lock().await;
        for _ in 0..TRIES {
            let stored = self.event_sources.get(key).ok_or_else(missing)?;
            let mut mapping = stored.mapping.clone();
            rule(&mut mapping)?;
            let put = Op::put(EVENT_SOURCE, key, to_bytes(&mapping)).when(Precondition::Version(stored.version));
            match self.commit(vec![put]).await {
                Ok(()) => return Ok(mapping),
                Err(error) if error.retryable() => self.let_others_in().await,
                Err(error) => return Err(service_error(&error)),
            }
        }
        Err(too_busy())
    }

    pub(super) async fn tag_event_source(
        &self,
        caller: &Caller,
        arn: &str,
        uuid: &str,
        change: impl Fn(&mut BTreeMap<String, String>) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        self.event_source_tags(caller, arn, uuid)?;
        self.change_mapping(&caller_key(caller, uuid), |mapping| change(&mut mapping.tags)).await?;
        Ok(())
    }

    pub(super) fn event_source_tags(
        &self,
        caller: &Caller,
        arn: &str,
        uuid: &str,
    ) -> Result<BTreeMap<String, String>, ApiError> {
        let stored = self.event_sources.get(&caller_key(caller, uuid));
        let stored = stored.filter(|stored| stored.mapping.arn() == arn);
        stored.map(|stored| stored.mapping.tags.clone()).ok_or_else(|| no_event_source(arn))
    }

    /// Ends the transition of a mapping.
    pub(super) async fn settle_mapping(&self, key: &str) {
        let _turn = self.event_sources.turn.lock().await;
        let Some(stored) = self.event_sources.get(key) else { return };
        let Some(transition) = stored.mapping.transition else { return };
        let op = if transition == Transition::Deleting {
            self.event_sources.problems.lock().remove(&stored.mapping.uuid);
            Op::delete(EVENT_SOURCE, key)
        } else {
            let now = self.unix_time();
            let settled = EventSourceRecord { transition: None, last_modified: now, ..stored.mapping.clone() };
            Op::put(EVENT_SOURCE, key, to_bytes(&settled))
        };
        match self.commit(vec![op.when(Precondition::Version(stored.version))]).await {
            Ok(()) => {}
            Err(error) if error.retryable() => tracing::debug!(key, %error, "the mapping was changed meanwhile"),
            // The next start takes the step again.
            Err(error) => tracing::error!(key, %error, "store the end of a mapping's transition"),
        }
    }
}

impl EventSources {
    fn get(&self, key: &str) -> Option<Arc<Stored>> {
        self.stored.read().get(key).cloned()
    }

    fn of(&self, prefix: &str) -> Vec<(String, Arc<Stored>)> {
        let stored = self.stored.read();
        let from = stored.range(prefix.to_owned()..);
        from.take_while(|(key, _)| key.starts_with(prefix)).map(|(key, one)| (key.clone(), Arc::clone(one))).collect()
    }

    /// UUID of another mapping of the same source and function.
    fn twin(&self, mapping: &EventSourceRecord) -> Option<String> {
        let stored = self.stored.read();
        let twin = |other: &&Arc<Stored>| other.mapping.uuid != mapping.uuid && other.mapping.same_pair(mapping);
        stored.values().find(twin).map(|other| other.mapping.uuid.clone())
    }

    /// Takes over everything that is stored. Returns the keys of what is in transition.
    pub(super) fn load(&self, snapshot: &Snapshot) -> Vec<String> {
        let all = snapshot.records.iter().filter_map(|(key, record)| Some((key.clone(), read(key, record)?)));
        let all: BTreeMap<_, _> = all.collect();
        let settling = all.iter().filter(|(_, stored)| stored.mapping.transition.is_some());
        let settling = settling.map(|(key, _)| key.clone()).collect();
        *self.stored.write() = all;
        self.changed();
        settling
    }

    /// Follows one commit. Returns the keys of what is in transition since.
    pub(super) fn apply(&self, commit: &Commit) -> Vec<String> {
        let mut settling = Vec::new();
        let mut stored = self.stored.write();
        let mut relevant = false;
        for change in &commit.changes {
            if change.kind == FUNCTION {
                relevant |= stored.values().any(|one| function_key(&one.mapping.function) == change.key);
            }
            if change.kind != EVENT_SOURCE || stored.get(&change.key).is_some_and(|old| old.version >= commit.revision)
            {
                continue;
            }
            relevant = true;
            match change.record.as_ref().and_then(|record| read(&change.key, record)) {
                Some(new) => {
                    if new.mapping.transition.is_some() {
                        settling.push(change.key.clone());
                    }
                    stored.insert(change.key.clone(), new);
                }
                None => drop(stored.remove(&change.key)),
            }
        }
        drop(stored);
        if relevant {
            self.changed();
        }
        settling
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// One that cannot be read is left alone: the others and the functions go on.
fn read(key: &str, record: &Record) -> Option<Arc<Stored>> {
    match from_bytes(&record.value) {
        Ok(mapping) => Some(Arc::new(Stored { mapping, version: record.version })),
        Err(error) => {
            tracing::error!(
                key, %error,
                "read an event source mapping; it was written by another version of Emberbox, or is damaged; it is not served"
            );
            None
        }
    }
}
