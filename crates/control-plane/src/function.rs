//! The function aggregate and its state machine. Pure: time and ids come in with a [`Stamp`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use domain::{CodeRef, FunctionArn, FunctionVersion, VersionKey};
use lambda_api::{ApiError, ErrorCode};

use crate::name::{is_alias, not_found, version_number};
use crate::record::{
    Alias, Failure, FunctionRecord, LATEST, Policy, Publication, Settings, Snapshot, State, Stored, Unknown, Update,
    Version,
};
use crate::sealed::Sealing;

/// What a rule must not make up itself.
pub(crate) struct Stamp<'a> {
    /// The time, as on the wire.
    pub now: &'a str,
    /// Makes an id that was never used before.
    pub id: &'a mut (dyn FnMut() -> String + Send),
}

impl Stamp<'_> {
    pub fn id(&mut self) -> String {
        (self.id)()
    }
}

/// A function with all its versions.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub arn: FunctionArn,
    pub record: FunctionRecord,
    pub versions: BTreeMap<u64, Arc<Published>>,
}

/// A published version, with what a worker needs of it.
#[derive(Debug)]
pub(crate) struct Published {
    pub version: Version,
    pub runnable: Arc<FunctionVersion>,
    /// How it is stored, or will be.
    pub sealing: Sealing,
}

impl Published {
    /// One that is new or was changed.
    pub fn new(arn: &FunctionArn, version: Version) -> Arc<Self> {
        Self::stored(arn, version, Sealing::Current)
    }

    /// One that was read.
    pub fn stored(arn: &FunctionArn, version: Version, sealing: Sealing) -> Arc<Self> {
        Arc::new(Self { runnable: Arc::new(runnable(arn, &version)), version, sealing })
    }

    /// Of a version that changes in nothing that it runs.
    fn same_code(&self, version: Version) -> Arc<Self> {
        Arc::new(Self { version, runnable: Arc::clone(&self.runnable), sealing: Sealing::Current })
    }
}

/// What a function is made from.
#[derive(Clone)]
pub(crate) struct New {
    pub arn: FunctionArn,
    pub settings: Settings,
    pub code: CodeRef,
    pub tags: BTreeMap<String, String>,
    /// One, or higher if a function of this name was deleted.
    pub next_version: u64,
}

impl Function {
    /// CreateFunction: Pending until its runtime is ready.
    pub fn create(new: New, stamp: &mut Stamp<'_>) -> Self {
        let latest = Version {
            number: None,
            revision_id: stamp.id(),
            last_modified: stamp.now.to_owned(),
            state_id: stamp.id(),
            code: new.code,
            settings: new.settings,
            state: State::Pending,
            update: Update::None,
            snapshot: Snapshot::None,
            unknown: Unknown::new(),
        };
        let record = FunctionRecord {
            latest,
            serving: None,
            next_version: new.next_version,
            published: None,
            aliases: BTreeMap::new(),
            policies: BTreeMap::new(),
            tags: new.tags,
            event_invoke: BTreeMap::new(),
            recursion_allowed: false,
            unknown: Unknown::new(),
        };
        Self { arn: new.arn, record, versions: BTreeMap::new() }
    }

    /// Changes code or settings. `$LATEST` serves its old state until [`Self::settle`].
    ///
    /// An update that changes nothing keeps the state's id, so sandboxes stay warm; the API shows it as any other.
    pub fn update(&mut self, code: CodeRef, settings: Settings, stamp: &mut Stamp<'_>) {
        let record = &mut self.record;
        let old = &record.latest;
        let changed = old.code != code || old.settings != settings;
        let state_id = if changed { stamp.id() } else { old.state_id.clone() };
        // After a failed creation there is nothing that could serve meanwhile.
        let (state, update) = match old.state {
            State::Active => (State::Active, Update::InProgress),
            State::Pending | State::Failed { .. } => (State::Pending, Update::None),
        };
        let latest = Version {
            number: None,
            revision_id: stamp.id(),
            last_modified: stamp.now.to_owned(),
            state_id,
            code,
            settings,
            state,
            update,
            snapshot: Snapshot::None,
            unknown: Unknown::new(),
        };
        let old = std::mem::replace(&mut record.latest, latest);
        if record.serving.is_none() && old.state == State::Active {
            record.serving = Some(old);
        }
    }

    /// PublishVersion, or `Publish` of a create or update, whose version is Pending as `$LATEST` is; with SnapStart every
    /// version is, until its snapshot was taken. Returns the version; the last one again if nothing changed since.
    pub fn publish(&mut self, description: Option<String>, stamp: &mut Stamp<'_>) -> Arc<Published> {
        let latest = &self.record.latest;
        if let Some(last) = &self.record.published
            && last.state_id == latest.state_id
            && let Some(version) = self.versions.get(&last.number)
            // What made one fail may be over.
            && !matches!(version.version.state, State::Failed { .. })
        {
            return Arc::clone(version);
        }
        let number = self.record.next_version;
        let ready = latest.update == Update::Successful;
        let snap_start = latest.settings.snap_start;
        let active = ready && !snap_start;
        let mut version = Version {
            number: Some(number),
            revision_id: stamp.id(),
            last_modified: stamp.now.to_owned(),
            state_id: stamp.id(),
            state: if active { State::Active } else { State::Pending },
            update: if active { Update::Successful } else { Update::None },
            snapshot: if ready && snap_start { Snapshot::Due } else { Snapshot::None },
            ..latest.clone()
        };
        if let Some(description) = description {
            version.settings.description = description;
        }
        self.record.next_version += 1;
        self.record.published = Some(Publication { number, state_id: latest.state_id.clone() });
        self.record.latest.revision_id = stamp.id();
        let version = Published::new(&self.arn, version);
        self.versions.insert(number, Arc::clone(&version));
        version
    }

    /// The background step for `state_id` ended. `false` if the function has moved on and nothing is to be done.
    pub fn settle(&mut self, state_id: &str, result: &Result<(), Failure>, stamp: &mut Stamp<'_>) -> bool {
        let latest = &mut self.record.latest;
        let creating = latest.state == State::Pending;
        if latest.state_id != state_id || !(creating || latest.update == Update::InProgress) {
            return false;
        }
        match result {
            Ok(()) => {
                latest.state = State::Active;
                latest.update = Update::Successful;
                self.record.serving = None;
            }
            Err(failure) if creating => latest.state = failed(failure),
            Err(Failure { reason, code }) => latest.update = Update::Failed { reason: reason.clone(), code: *code },
        }
        self.record.latest.revision_id = stamp.id();
        let waits = |version: &Version| version.state == State::Pending && version.snapshot == Snapshot::None;
        for published in self.versions.values_mut().filter(|p| waits(&p.version)) {
            let mut version = published.version.clone();
            match result {
                Ok(()) if version.settings.snap_start => version.snapshot = Snapshot::Due,
                Ok(()) => (version.state, version.update) = (State::Active, Update::Successful),
                Err(failure) => version.state = failed(failure),
            }
            *published = Published::new(&self.arn, version);
        }
        true
    }

    /// The snapshot of a version was taken, or this host takes none (and why), or the version's Init failed. `false` if the
    /// version is no longer there or waits for none.
    pub fn settle_snapshot(&mut self, state_id: &str, result: &Result<Option<String>, Failure>) -> bool {
        let waits = |version: &Version| version.state_id == state_id && version.snapshot == Snapshot::Due;
        let Some(published) = self.versions.values_mut().find(|p| waits(&p.version)) else { return false };
        let mut version = published.version.clone();
        match result {
            Ok(missing) => {
                version.snapshot = missing.clone().map_or(Snapshot::Taken, Snapshot::Missing);
                (version.state, version.update) = (State::Active, Update::Successful);
            }
            Err(failure) => {
                version.snapshot = Snapshot::None;
                version.state = failed(failure);
            }
        }
        *published = published.same_code(version);
        true
    }

    /// Versions whose snapshot has still to be taken.
    pub fn due_snapshots(&self) -> impl Iterator<Item = &Arc<Published>> {
        self.versions.values().filter(|p| p.version.snapshot == Snapshot::Due)
    }

    /// DeleteFunction with a version's number; deleting one that is not there is no error.
    pub fn delete_version(&mut self, number: u64) -> Result<(), ApiError> {
        let name = number.to_string();
        let refers =
            |alias: &Alias| alias.version == name || alias.additional.is_some_and(|(other, _)| other == number);
        let aliases: Vec<&str> =
            self.record.aliases.iter().filter(|(_, alias)| refers(alias)).map(|(name, _)| name.as_str()).collect();
        if !aliases.is_empty() {
            return Err(ApiError::new(
                ErrorCode::ResourceConflictException,
                format!(
                    "Unable to delete version because the following aliases reference it: [{}]",
                    aliases.join(", ")
                ),
            ));
        }
        self.versions.remove(&number);
        self.record.policies.remove(&name);
        self.record.event_invoke.remove(&name);
        Ok(())
    }

    /// A published version's revision changes with its policy; nothing else about it ever does, so it stays what it runs.
    pub fn set_revision(&mut self, number: u64, revision_id: &str) {
        if let Some(published) = self.versions.get_mut(&number) {
            let version = Version { revision_id: revision_id.to_owned(), ..published.version.clone() };
            *published = published.same_code(version);
        }
    }

    /// Whether the background step for `$LATEST` has still to come.
    pub fn is_settling(&self) -> bool {
        self.record.latest.state == State::Pending || self.record.latest.update == Update::InProgress
    }

    /// Updates and publications wait for the one that is under way.
    pub fn check_settled(&self) -> Result<(), ApiError> {
        if self.record.latest.state == State::Pending {
            return Err(in_state("Pending"));
        }
        if self.record.latest.update == Update::InProgress {
            return Err(ApiError::new(
                ErrorCode::ResourceConflictException,
                format!(
                    "The operation cannot be performed at this time. An update is in progress for resource: {}",
                    self.arn
                ),
            ));
        }
        Ok(())
    }

    /// Only what is known to run is published.
    pub fn check_ready(&self) -> Result<(), ApiError> {
        match (&self.record.latest.state, &self.record.latest.update) {
            (State::Active, Update::Failed { reason, .. }) => Err(ApiError::new(
                ErrorCode::ResourceConflictException,
                format!(
                    "The operation cannot be performed at this time. The last update of the function failed: {reason}"
                ),
            )),
            (State::Active, _) => Ok(()),
            (State::Pending, _) => Err(in_state("Pending")),
            (State::Failed { .. }, _) => Err(in_state("Failed")),
        }
    }

    /// The guard of updates and publications.
    pub fn check_revision(&self, expected: Option<&str>) -> Result<(), ApiError> {
        check_revision(&self.record.latest.revision_id, expected)
    }

    /// The version that a qualifier names: `$LATEST` (also without qualifier), a number, or an alias' main one.
    pub fn version(&self, qualifier: Option<&str>) -> Result<&Version, ApiError> {
        let name = match qualifier {
            None => LATEST,
            Some(name) => self.record.aliases.get(name).map_or(name, |alias| alias.version.as_str()),
        };
        if name == LATEST {
            return Ok(&self.record.latest);
        }
        let published = version_number(name).and_then(|number| self.versions.get(&number));
        published.map(|p| &p.version).ok_or_else(|| not_found(self.arn.qualified(qualifier.unwrap_or(name))))
    }

    /// Whether a qualifier names something that can have a policy of its own.
    pub fn check_qualifier(&self, qualifier: Option<&str>) -> Result<(), ApiError> {
        match qualifier {
            Some(name) if is_alias(name) && !self.record.aliases.contains_key(name) => Err(ApiError::new(
                ErrorCode::ResourceNotFoundException,
                format!("Cannot find alias arn: {}", self.arn.qualified(name)),
            )),
            Some(name) if self.record.aliases.contains_key(name) => Ok(()),
            _ => self.version(qualifier).map(|_| ()),
        }
    }

    /// The policy of what a qualifier names.
    pub fn policy(&self, qualifier: Option<&str>) -> Option<&Policy> {
        self.record.policies.get(qualifier.unwrap_or(LATEST))
    }

    /// Every version: `$LATEST`, then the published ones by number.
    pub fn all_versions(&self) -> impl Iterator<Item = &Version> {
        std::iter::once(&self.record.latest).chain(self.versions.values().map(|p| &p.version))
    }

    /// Every package and image that the function needs, also for what serves during an update, and its snapshots.
    pub fn stored(&self) -> impl Iterator<Item = Stored> {
        let code = self.all_versions().chain(&self.record.serving).map(|version| Stored::of(&version.code));
        let kept = |p: &&Arc<Published>| matches!(p.version.snapshot, Snapshot::Due | Snapshot::Taken);
        code.chain(self.versions.values().filter(kept).map(|p| Stored::Snapshot(p.runnable.key.0.to_string())))
    }

    /// What invocations of `$LATEST` run.
    pub fn serving(&self) -> &Version {
        self.record.serving.as_ref().unwrap_or(&self.record.latest)
    }
}

fn failed(failure: &Failure) -> State {
    State::Failed { reason: failure.reason.clone(), code: failure.code }
}

pub(crate) fn check_revision(current: &str, expected: Option<&str>) -> Result<(), ApiError> {
    match expected {
        Some(expected) if expected != current => Err(ApiError::new(
            ErrorCode::PreconditionFailedException,
            "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to \
             retrieve the latest Revision Id",
        )),
        _ => Ok(()),
    }
}

/// A version that is not Active can neither be invoked nor updated.
pub(crate) fn in_state(state: &str) -> ApiError {
    ApiError::new(
        ErrorCode::ResourceConflictException,
        format!(
            "The operation cannot be performed at this time. The function is currently in the following state: {state}"
        ),
    )
}

/// What a worker needs to know.
pub(crate) fn runnable(arn: &FunctionArn, version: &Version) -> FunctionVersion {
    let name = version.name();
    let key = format!("{}:{}:{}:{name}:{}", arn.account, arn.region, arn.name, version.state_id);
    let settings = &version.settings;
    FunctionVersion {
        key: VersionKey(key.into()),
        account: arn.account.clone(),
        region: arn.region.to_string(),
        name: arn.name.to_string(),
        version: name,
        arn: arn.clone(),
        runtime: settings.runtime.clone(),
        handler: settings.handler.clone(),
        code: version.code.clone(),
        image_config: settings.image_config.clone().unwrap_or_default(),
        layers: Vec::new(),
        memory_mb: settings.memory,
        timeout: Duration::from_secs(settings.timeout.into()),
        ephemeral_mb: settings.ephemeral,
        environment: settings.environment.as_ref().map(|variables| variables.get().clone()).unwrap_or_default(),
        logging: settings.logging.clone(),
        tracing_active: settings.tracing_active,
        snap_start: settings.snap_start && version.number.is_some(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::{BTreeMap, HashSet};

    use domain::{AccountId, LogFormat, LoggingSettings};
    use proptest::prelude::*;

    use super::*;
    use crate::record::FailureCode;
    use crate::rules::alias;

    #[derive(Clone, Debug)]
    enum Step {
        Update { code: u8, memory: u32, snap_start: bool, publish: bool },
        Publish,
        Settle(bool),
        SettleSnapshot(Result<Option<()>, ()>),
        DeleteVersion(u64),
        Alias(u8, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..3u8, 128..130u32, any::<bool>(), any::<bool>())
                .prop_map(|(code, memory, snap_start, publish)| Step::Update { code, memory, snap_start, publish }),
            2 => Just(Step::Publish),
            4 => any::<bool>().prop_map(Step::Settle),
            2 => any::<Result<Option<()>, ()>>().prop_map(Step::SettleSnapshot),
            1 => (1..8u64).prop_map(Step::DeleteVersion),
            1 => (0..2u8, 1..8u64).prop_map(|(name, version)| Step::Alias(name, version)),
        ]
    }

    pub(crate) fn code(n: u8) -> CodeRef {
        CodeRef { sha256: n.to_string(), size: n.into(), image: None }
    }

    pub(crate) fn new(name: &str) -> New {
        let arn = FunctionArn { region: "r".into(), account: AccountId::local(), name: name.into() };
        let logging =
            LoggingSettings { format: LogFormat::Text, application_level: None, system_level: None, group: "g".into() };
        let settings = Settings {
            description: String::new(),
            role: String::new(),
            runtime: "python3.12".into(),
            runtime_version_arn: String::new(),
            handler: "h".into(),
            timeout: 3,
            memory: 128,
            ephemeral: 512,
            environment: None,
            tracing_active: false,
            logging,
            architecture: "x86_64".into(),
            dead_letter: None,
            image_config: None,
            snap_start: false,
            unknown: Unknown::new(),
        };
        New { arn, settings, code: code(0), tags: BTreeMap::new(), next_version: 1 }
    }

    proptest! {
        /// Whatever happens: published versions stay what they run, numbers grow, aliases lead somewhere, and once
        /// `$LATEST` could run, something of it always can.
        #[test]
        fn the_states_of_a_function(steps in prop::collection::vec(step(), 0..40)) {
            let mut count = 0;
            let mut id = || { count += 1; count.to_string() };
            let stamp = &mut Stamp { now: "now", id: &mut id };
            let mut function = Function::create(new("f"), stamp);
            let mut published: BTreeMap<u64, FunctionVersion> = BTreeMap::new();
            let mut keys = HashSet::new();
            let mut was_active = false;
            for step in steps {
                let before = function.clone();
                match step {
                    Step::Update { code: n, memory, snap_start, publish } if function.check_settled().is_ok() => {
                        let settings = Settings { memory, snap_start, ..function.record.latest.settings.clone() };
                        function.update(code(n), settings, stamp);
                        prop_assert_eq!(function.serving().state == State::Active, before.serving().state == State::Active);
                        if before.serving().state == State::Active {
                            prop_assert_eq!(&function.serving().code, &before.serving().code, "the old code serves");
                        }
                        if publish {
                            function.publish(None, stamp);
                        }
                    }
                    Step::Publish if function.check_settled().is_ok() && function.check_ready().is_ok() => {
                        let first = function.publish(None, stamp);
                        let again = function.publish(Some("other".into()), stamp);
                        prop_assert!(Arc::ptr_eq(&first, &again), "the same state is published once");
                        prop_assert_eq!(&first.version.code, &function.record.latest.code);
                    }
                    Step::Settle(ready) => {
                        let state_id = function.record.latest.state_id.clone();
                        let result = if ready { Ok(()) } else { Err(Failure { reason: "why".to_owned(), code: FailureCode::default() }) };
                        let stale = function.settle("stale", &result, stamp);
                        prop_assert!(!stale);
                        let settled = function.settle(&state_id, &result, stamp);
                        prop_assert_eq!(settled, before.is_settling());
                        prop_assert!(!function.is_settling());
                    }
                    Step::SettleSnapshot(result) => {
                        let due = function.due_snapshots().next().map(|p| p.version.clone());
                        let state_id = due.as_ref().map_or("none", |version| &version.state_id);
                        let failure = |()| Failure { reason: "why".to_owned(), code: FailureCode::InitTimeout };
                        let result = result.map(|missing| missing.map(|()| "because".to_owned())).map_err(failure);
                        prop_assert_eq!(function.settle_snapshot(state_id, &result), due.is_some());
                        prop_assert!(!function.settle_snapshot(state_id, &result), "once");
                        if let Some(version) = due {
                            let settled = function.version(Some(&version.name())).unwrap();
                            prop_assert_eq!(settled.state == State::Active, result.is_ok());
                            let kept = function.stored().filter(|s| matches!(s, Stored::Snapshot(_))).count();
                            let before = before.stored().filter(|s| matches!(s, Stored::Snapshot(_))).count();
                            prop_assert_eq!(kept, before - usize::from(result != Ok(None)));
                        }
                    }
                    Step::DeleteVersion(number) => {
                        if function.delete_version(number).is_ok() {
                            published.remove(&number);
                        }
                    }
                    Step::Alias(name, version) => {
                        let request = lambda_api::types::CreateAliasRequest {
                            name: format!("a{name}"), function_version: version.to_string(), ..Default::default()
                        };
                        let _ = alias::create(&mut function, &request, stamp);
                    }
                    Step::Update { .. } | Step::Publish => {}
                }
                for (number, version) in &function.versions {
                    if let Some(first) = published.get(number) {
                        prop_assert_eq!(&*version.runnable, first, "immutable");
                    } else {
                        prop_assert!(published.keys().all(|other| other < number) && *number >= before.record.next_version);
                        prop_assert!(keys.insert(version.runnable.key.clone()), "a state of its own");
                        published.insert(*number, FunctionVersion::clone(&version.runnable));
                    }
                    let due = version.version.snapshot == Snapshot::Due;
                    prop_assert!(version.version.state != State::Pending || function.is_settling() || due);
                    prop_assert!(!due || version.version.state == State::Pending && version.runnable.snap_start);
                }
                prop_assert_eq!(function.versions.len(), published.len());
                for alias in function.record.aliases.values() {
                    prop_assert!(function.versions.contains_key(&alias.version.parse().unwrap()));
                }
                was_active |= function.record.latest.state == State::Active;
                prop_assert_eq!(function.serving().state == State::Active, was_active);
            }
        }
    }
}
