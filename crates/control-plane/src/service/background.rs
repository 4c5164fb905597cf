//! What goes on without a request: following the store, taking the background steps, removing packages.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use domain::VersionKey;
use store::{Changes, Feed, Op, Precondition, StoreError};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::event_source::EVENT_SOURCE;
use super::{ControlPlane, Error, Inner, Task, followed};
use crate::catalog::{Effects, Entry};
use crate::name::not_found;
use crate::record::{ACCOUNT, FUNCTION, Failure, FailureCode, IMAGE, PACKAGE, SNAPSHOT, Stored, VERSION, function_key};
use crate::rules::code;
use crate::sealed::Sealing;

/// How long a package stays after its last use: an invocation that was resolved to it before must find it still.
const GRACE: Duration = Duration::from_secs(60);

/// The same of a container image, which sandboxes run on: longer than the longest invocation, 15 minutes, and the end of
/// its sandbox.
const IMAGE_GRACE: Duration = Duration::from_secs(20 * 60);

/// How long another process may take from a package that it found stored to the record of it.
const STORING: Duration = Duration::from_secs(10);

/// How often all metadata are read again while a part of them cannot be read: the store may have been mended from outside.
const READ_AGAIN: Duration = Duration::from_secs(5);

/// How often unused packages are looked for.
const COLLECT_EVERY: Duration = Duration::from_secs(30);

/// Counts a background step as long as it lives, however it ends.
pub(super) struct Busy(watch::Sender<usize>);

impl Busy {
    pub(super) fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|busy| *busy += 1);
        Self(count.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|busy| *busy -= 1);
    }
}

/// What comes of reading all metadata.
struct Loaded {
    effects: Effects,
    /// Event source mappings whose transitions have to be ended.
    settling: Vec<String>,
    /// The last commit that was read.
    revision: u64,
}

/// Loads the catalog, and starts the tasks.
pub(super) async fn start(inner: &Arc<Inner>) -> Result<(), Error> {
    let changes = inner.store.changes();
    let loaded = inner.read_all().await?;
    // Nothing is known of what it was before.
    if let Some(bad) = loaded.effects.unread.first() {
        return Err(bad.clone().into());
    }
    inner.go_on_from(loaded);
    inner.log_sealing();
    inner.drop_unreferenced().await?;
    if !inner.config.shared {
        // No sandbox is older than this process, so what is unused now was so long enough.
        inner.collect(|_| Duration::ZERO).await;
    }
    let follower = Task(tokio::spawn(follow(Arc::downgrade(inner), changes)));
    let collector = Task(tokio::spawn(collect(Arc::downgrade(inner))));
    inner.tasks.lock().extend([follower, collector]);
    Ok(())
}

async fn follow(inner: Weak<Inner>, mut changes: Changes) {
    // However it ends, nobody waits for it any more, and nothing takes its silence for quiet.
    let _ended = followed::Ended(Weak::clone(&inner));
    let mut again = tokio::time::interval(READ_AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let unread = {
            let Some(inner) = inner.upgrade() else { return };
            inner.catalog.unread().is_some()
        };
        // Only then: commits that come meanwhile put it off no further.
        if !unread {
            again.reset();
        }
        let feed = tokio::select! {
            feed = changes.next() => feed,
            _ = again.tick(), if unread => {
                let Some(inner) = inner.upgrade() else { return };
                inner.load_again().await;
                continue;
            }
        };
        let Some(inner) = inner.upgrade() else { return };
        match feed {
            // A scan has seen it.
            Feed::Commit(commit) if commit.revision <= inner.followed.borrow().applied => {}
            Feed::Commit(commit) => {
                let effects = inner.catalog.apply(&commit);
                let again = inner.follow_up(effects);
                inner.load_functions(again).await;
                let settling = inner.event_sources.apply(&commit);
                inner.start_settling_mappings(settling);
                inner.applied_up_to(commit.revision);
            }
            Feed::Missed => inner.load_at_last().await,
            Feed::Closed => {
                inner.closed();
                return;
            }
        }
    }
}

fn grace(stored: &Stored) -> Duration {
    match stored {
        // One of which a sandbox starts is not missed: it starts without.
        Stored::Package(_) | Stored::Snapshot(_) => GRACE,
        Stored::Image(_) => IMAGE_GRACE,
    }
}

async fn collect(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(COLLECT_EVERY).await;
        let Some(inner) = inner.upgrade() else { return };
        inner.collect(grace).await;
    }
}

impl ControlPlane {
    /// Removes the packages that no function has used for a minute, and the images that none has for 20. Happens by itself
    /// twice a minute.
    pub async fn remove_unused_packages(&self) {
        self.inner.collect(grace).await;
    }
}

impl Inner {
    /// Reads all that is stored into the catalog.
    async fn read_all(&self) -> Result<Loaded, StoreError> {
        let functions = self.store.scan(FUNCTION, "").await?;
        let versions = self.store.scan(VERSION, "").await?;
        let accounts = self.store.scan(ACCOUNT, "").await?;
        let event_sources = self.store.scan(EVENT_SOURCE, "").await?;
        let effects = self.catalog.load(&accounts, &functions, &versions);
        let settling = self.event_sources.load(&event_sources);
        Ok(Loaded { effects, settling, revision: functions.revision })
    }

    fn go_on_from(self: &Arc<Self>, loaded: Loaded) {
        self.start_settling_mappings(loaded.settling);
        self.follow_up(loaded.effects);
        self.applied_up_to(loaded.revision);
    }

    pub(super) async fn load(self: &Arc<Self>) -> Result<(), StoreError> {
        let loaded = self.read_all().await?;
        self.go_on_from(loaded);
        Ok(())
    }

    /// Reads these functions anew, which were written again and could not be read before.
    async fn load_functions(self: &Arc<Self>, keys: HashSet<String>) {
        for key in keys {
            // With those whose names begin in the same way.
            let (functions, versions) =
                match (self.store.scan(FUNCTION, &key).await, self.store.scan(VERSION, &key).await) {
                    (Ok(functions), Ok(versions)) => (functions, versions),
                    // They stay what cannot be read, until all is read again.
                    (Err(error), _) | (_, Err(error)) => return tracing::warn!(%error, "read a function again"),
                };
            let mut effects = Effects::default();
            self.catalog.load_functions(&key, &functions, &versions, &mut effects);
            self.follow_up(effects);
        }
    }

    /// For the operator, who wants to know when an old key can go.
    fn log_sealing(&self) {
        let (plain, old) = (self.catalog.count(Sealing::Plain), self.catalog.count(Sealing::OldKey));
        if plain + old > 0 {
            tracing::warn!(
                plain,
                old_key = old,
                current_key = self.keys.current(),
                "records of functions and versions whose environment variables are not encrypted, or with a key that is not the \
                 first; each is encrypted anew with the next change of its function, and until then old keys are needed"
            );
        }
    }

    /// Returns the functions to read anew.
    fn follow_up(self: &Arc<Self>, effects: Effects) -> HashSet<String> {
        for bad in effects.unread {
            tracing::error!(
                "{bad}. Until it can be read, it stays here as it was, and this process does not write over it"
            );
        }
        for key in effects.mended {
            tracing::info!(key, "what could not be read of the metadata is readable, or gone");
        }
        for key in effects.retired {
            // Fails only when nobody listens.
            let _ = self.retired.send(key);
        }
        if !effects.dropped.is_empty() {
            let now = self.clock.monotonic();
            self.dropped.lock().extend(effects.dropped.into_iter().map(|stored| (stored, now)));
        }
        for entry in effects.settling {
            self.start_settling(&entry);
        }
        for (function, version) in effects.snapshots {
            self.start_snapshot(function, &version);
        }
        effects.again
    }

    /// Takes the background step of a function, unless it is under way.
    fn start_settling(self: &Arc<Self>, entry: &Entry) {
        let key = function_key(&entry.function.arn);
        let latest = &entry.function.record.latest;
        let step = (key, latest.state_id.clone());
        if !self.settling.lock().insert(step.clone()) {
            return;
        }
        let busy = Busy::new(&self.busy);
        let (runtimes, images) = (Arc::clone(&self.runtimes), Arc::clone(&self.images));
        let (runtime, image) = (latest.settings.runtime.clone(), latest.code.image.clone());
        let inner = Arc::downgrade(self);
        tokio::spawn(async move {
            let result = match image {
                Some(image) => images.ensure(&image).await.map_err(code::image_failure),
                None => runtimes
                    .ensure(&runtime)
                    .await
                    .map_err(|reason| Failure { reason, code: FailureCode::InvalidRuntime }),
            };
            // It may take minutes. Who ended the control plane meanwhile leaves the rest to the next start.
            let Some(inner) = inner.upgrade() else { return };
            inner.settle(step, result).await;
            drop(busy);
        });
    }

    /// Ends the transitions of these event source mappings.
    fn start_settling_mappings(self: &Arc<Self>, keys: Vec<String>) {
        for key in keys {
            let busy = Busy::new(&self.busy);
            let inner = Arc::downgrade(self);
            tokio::spawn(async move {
                let Some(inner) = inner.upgrade() else { return };
                inner.settle_mapping(&key).await;
                drop(busy);
            });
        }
    }

    async fn settle(&self, step: (String, String), result: Result<(), Failure>) {
        if let Err(Failure { reason, .. }) = &result {
            tracing::warn!(function = step.0, reason, "the runtime or the image is not ready");
        }
        // From here on a new change starts a step of its own; one too many does nothing.
        self.settling.lock().remove(&step);
        let (key, state_id) = &step;
        let changed = self.change(
            key,
            || not_found(key),
            |function, stamp| {
                function.settle(state_id, &result, stamp);
                Ok(())
            },
        );
        match changed.await {
            Ok(()) => {}
            Err(error) if self.catalog.function(key).is_none() => tracing::debug!(key, %error, "deleted meanwhile"),
            // The next start takes the step again.
            Err(error) => tracing::error!(key, %error, "store the end of a background step"),
        }
    }

    /// Finds the packages, images and snapshots that an earlier process stored or dropped and then did not get to remove.
    async fn drop_unreferenced(&self) -> Result<(), StoreError> {
        let packages = self.store.scan(PACKAGE, "").await?.records.into_iter().map(|(key, _)| Stored::Package(key));
        let images = self.store.scan(IMAGE, "").await?.records.into_iter().map(|(key, _)| Stored::Image(key));
        let snapshots = self.store.scan(SNAPSHOT, "").await?.records.into_iter().map(|(key, _)| Stored::Snapshot(key));
        let unused = packages.chain(images).chain(snapshots).filter(|stored| !self.catalog.uses(stored));
        // Where others have the same metadata, it may be unused since just now.
        let since = if self.config.shared { self.clock.monotonic() } else { Duration::ZERO };
        self.dropped.lock().extend(unused.map(|stored| (stored, since)));
        Ok(())
    }

    /// Removes the packages, images and snapshots that were dropped at least `grace` ago and that nothing uses.
    async fn collect(&self, grace: impl Fn(&Stored) -> Duration) {
        // What cannot be read may use any of them.
        if self.catalog.unread().is_some() {
            return;
        }
        let now = self.clock.monotonic();
        let due: Vec<Stored> = {
            let dropped = self.dropped.lock();
            let old = dropped.iter().filter(|(stored, since)| now.saturating_sub(**since) >= grace(stored));
            old.map(|(stored, _)| stored.clone()).collect()
        };
        for stored in due {
            // Somebody is storing code, maybe this very package again.
            let Ok(alone) = self.package_gate.try_write() else { return };
            if self.is_being_taken(&stored) {
                continue;
            }
            let removed = match (self.catalog.uses(&stored), self.config.shared) {
                (true, _) => Ok(()),
                (false, false) => self.remove(&stored).await,
                // Others store code meanwhile, whatever this process does.
                (false, true) => {
                    drop(alone);
                    self.remove_shared(&stored).await
                }
            };
            if let Err(error) = removed {
                let (kind, key) = stored.record();
                tracing::warn!(key, %error, "remove an unused {kind}; trying again later");
                continue;
            }
            self.dropped.lock().remove(&stored);
        }
    }

    /// In the place of [`Self::remove`] where other processes have the same metadata: they may be about to use it again. First this
    /// copy of the metadata is brought up to the record, so that one that is cut off from the database removes nothing. Then
    /// the record goes, unless somebody has stored the same again; and some time later what it led to, unless somebody has by then. Should
    /// this process end in between, that stays for ever.
    async fn remove_shared(&self, stored: &Stored) -> Result<(), String> {
        let (kind, key) = stored.record();
        let Some(record) = self.store.get(kind, key).await.map_err(|error| error.to_string())? else { return Ok(()) };
        self.has_followed(record.version).await.map_err(|error| error.to_string())?;
        if self.catalog.uses(stored) {
            return Ok(());
        }
        if let Some((_, bad)) = self.catalog.unread() {
            return Err(format!("what cannot be read may use it: {bad}"));
        }
        let delete = Op::delete(kind, key).when(Precondition::Version(record.version));
        match self.store.commit(vec![delete]).await {
            Ok(_) => {}
            Err(StoreError::Conflict { .. }) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
        tokio::time::sleep(STORING).await;
        match self.store.get(kind, key).await {
            Ok(None) => self.remove_content(stored).await,
            Ok(Some(_)) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn remove_content(&self, stored: &Stored) -> Result<(), String> {
        match stored {
            Stored::Package(sha256) => self.packages.remove(sha256).await.map_err(|error| error.to_string()),
            Stored::Image(digest) => self.images.remove(digest).await,
            Stored::Snapshot(key) => self.snapshots.remove(&VersionKey(key.as_str().into())).await,
        }
    }

    /// The package or image first: should the process end between the two, the record still leads to it.
    async fn remove(&self, stored: &Stored) -> Result<(), String> {
        self.remove_content(stored).await?;
        let (kind, key) = stored.record();
        self.store.commit(vec![Op::delete(kind, key)]).await.map_err(|error| error.to_string())?;
        Ok(())
    }
}
