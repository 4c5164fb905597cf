//! The copy of the metadata in memory: what every read works on.
//!
//! Readers load one of a few dozen immutable maps, without locks. One task, the follower of the store's change feed,
//! replaces the map that a change falls into.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use arc_swap::ArcSwap;
use domain::{FunctionVersion, VersionKey};
use store::{Change, Commit, Snapshot};

use crate::function::{Function, Published, runnable};
use crate::record::{
    ACCOUNT, AccountRecord, FUNCTION, FunctionRecord, VERSION, Version, from_bytes, parse_function_key,
    parse_version_key,
};

/// Enough that a change copies few entries; more would cost memory for nothing.
const SHARDS: usize = 64;

/// One function as it is stored.
#[derive(Debug)]
pub(crate) struct Entry {
    pub function: Function,
    /// Version of its record in the store, which changes with every change of any part of the function.
    pub stored: u64,
    /// What invocations of `$LATEST` run, if its state allows it.
    pub serving: Arc<FunctionVersion>,
}

impl Entry {
    fn new(function: Function, stored: u64, old: Option<&Self>) -> Self {
        let serving = runnable(&function.arn, function.serving());
        let same = old.filter(|old| *old.serving == serving);
        let serving = same.map_or_else(|| Arc::new(serving), |old| Arc::clone(&old.serving));
        Self { function, stored, serving }
    }

    /// Every state of the function that sandboxes may have been made from.
    fn keys(&self) -> impl Iterator<Item = &VersionKey> {
        std::iter::once(&self.serving.key).chain(self.function.versions.values().map(|p| &p.runnable.key))
    }

    fn runs(&self, key: &VersionKey) -> bool {
        self.keys().any(|own| own == key)
    }
}

/// What an account shares, with the version of its record.
#[derive(Clone, Default, Debug)]
pub(crate) struct Account {
    pub record: Arc<AccountRecord>,
    /// `None`: not stored yet.
    pub stored: Option<u64>,
}

type Shard = HashMap<String, Arc<Entry>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Catalog {
    hasher: RandomState,
    shards: Vec<ArcSwap<Shard>>,
    accounts: ArcSwap<HashMap<String, Account>>,
}

/// What follows from a change.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// No invocation will be sent to these any more.
    pub retired: Vec<VersionKey>,
    /// Packages that these functions no longer use; others may.
    pub dropped: Vec<String>,
    /// Functions whose background step has to be taken.
    pub settling: Vec<Arc<Entry>>,
}

/// A record that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("read {kind} {key} of the metadata: {source}; it was written by another version of Emberbox, or is damaged")]
pub struct BadRecord {
    kind: String,
    key: String,
    source: serde_json::Error,
}

impl Catalog {
    pub fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| ArcSwap::default()).collect(),
            accounts: ArcSwap::default(),
        }
    }

    pub fn function(&self, key: &str) -> Option<Arc<Entry>> {
        self.shard(key).load().get(key).cloned()
    }

    pub fn account(&self, key: &str) -> Account {
        self.accounts.load().get(key).cloned().unwrap_or_default()
    }

    /// Functions whose keys start with `prefix`, by key.
    pub fn functions(&self, prefix: &str) -> Vec<(String, Arc<Entry>)> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.load();
            let matching = shard.iter().filter(|(key, _)| key.starts_with(prefix));
            all.extend(matching.map(|(key, entry)| (key.clone(), Arc::clone(entry))));
        }
        all.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// Whether any function needs a package.
    pub fn uses(&self, sha256: &str) -> bool {
        let needs = |entry: &Arc<Entry>| entry.function.packages().any(|code| code.sha256 == sha256);
        self.shards.iter().any(|shard| shard.load().values().any(needs))
    }

    /// Takes over everything that is stored. `functions` must have been scanned before `versions`: what was published in
    /// between then is there, and following the feed from before the scans makes the rest right.
    pub fn load(&self, accounts: &Snapshot, functions: &Snapshot, versions: &Snapshot) -> Result<Effects, BadRecord> {
        let mut all_accounts = HashMap::new();
        for (key, record) in &accounts.records {
            let account =
                Account { record: Arc::new(decode(ACCOUNT, key, &record.value)?), stored: Some(record.version) };
            all_accounts.insert(key.clone(), account);
        }
        self.accounts.store(Arc::new(all_accounts));

        let mut loaded: HashMap<String, (Function, u64)> = HashMap::new();
        for (key, record) in &functions.records {
            let Some(arn) = parse_function_key(key) else { continue };
            let value: FunctionRecord = decode(FUNCTION, key, &record.value)?;
            loaded.insert(key.clone(), (Function { arn, record: value, versions: Default::default() }, record.version));
        }
        for (key, record) in &versions.records {
            let Some((function, number)) = parse_version_key(key) else { continue };
            if let Some((function, _)) = loaded.get_mut(function) {
                let version: Version = decode(VERSION, key, &record.value)?;
                function.versions.insert(number, Published::new(&function.arn, version));
            }
        }
        let mut effects = Effects::default();
        for (key, old) in self.functions("") {
            if !loaded.contains_key(&key) {
                self.replace(&key, Some(&old), None, &mut effects);
            }
        }
        for (key, (function, stored)) in loaded {
            let old = self.function(&key);
            let new = Arc::new(Entry::new(function, stored, old.as_deref()));
            self.replace(&key, old.as_ref(), Some(new), &mut effects);
        }
        Ok(effects)
    }

    /// Follows one commit. Only one task may call this or [`Self::load`] at a time.
    pub fn apply(&self, commit: &Commit) -> Result<Effects, BadRecord> {
        let mut effects = Effects::default();
        for change in commit.changes.iter().filter(|change| change.kind == ACCOUNT) {
            let account = match &change.record {
                Some(record) => Account {
                    record: Arc::new(decode(ACCOUNT, &change.key, &record.value)?),
                    stored: Some(record.version),
                },
                None => Account::default(),
            };
            let mut accounts = HashMap::clone(&self.accounts.load());
            accounts.insert(change.key.clone(), account);
            self.accounts.store(Arc::new(accounts));
        }
        for change in commit.changes.iter().filter(|change| change.kind == FUNCTION) {
            let old = self.function(&change.key);
            // A scan may have seen more than this commit.
            if old.as_ref().is_some_and(|old| old.stored >= commit.revision) {
                continue;
            }
            let new = self.changed(change, commit, old.as_deref())?;
            self.replace(&change.key, old.as_ref(), new, &mut effects);
        }
        Ok(effects)
    }

    /// The function after a commit that changed its record, and maybe its versions.
    fn changed(&self, change: &Change, commit: &Commit, old: Option<&Entry>) -> Result<Option<Arc<Entry>>, BadRecord> {
        let (Some(record), Some(arn)) = (&change.record, parse_function_key(&change.key)) else { return Ok(None) };
        let mut versions = old.map(|old| old.function.versions.clone()).unwrap_or_default();
        for version in commit.changes.iter().filter(|change| change.kind == VERSION) {
            let Some((function, number)) = parse_version_key(&version.key) else { continue };
            if function != change.key {
                continue;
            }
            match &version.record {
                Some(record) => {
                    let published = decode(VERSION, &version.key, &record.value)?;
                    versions.insert(number, Published::new(&arn, published));
                }
                None => drop(versions.remove(&number)),
            }
        }
        let function = Function { arn, record: decode(FUNCTION, &change.key, &record.value)?, versions };
        Ok(Some(Arc::new(Entry::new(function, record.version, old))))
    }

    fn replace(&self, key: &str, old: Option<&Arc<Entry>>, new: Option<Arc<Entry>>, effects: &mut Effects) {
        if let Some(old) = old {
            let gone = old.keys().filter(|key| !new.as_ref().is_some_and(|new| new.runs(key)));
            effects.retired.extend(gone.cloned());
            let needed = |sha: &str| new.as_ref().is_some_and(|new| new.function.packages().any(|c| c.sha256 == sha));
            let dropped = old.function.packages().filter(|code| !needed(&code.sha256));
            effects.dropped.extend(dropped.map(|code| code.sha256.clone()));
        }
        let shard = self.shard(key);
        let mut entries = Shard::clone(&shard.load());
        match new {
            Some(new) => {
                if new.function.is_settling() {
                    effects.settling.push(Arc::clone(&new));
                }
                entries.insert(key.to_owned(), new);
            }
            None => drop(entries.remove(key)),
        }
        shard.store(Arc::new(entries));
    }

    fn shard(&self, key: &str) -> &ArcSwap<Shard> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }
}

fn decode<T: serde::de::DeserializeOwned>(kind: &str, key: &str, bytes: &[u8]) -> Result<T, BadRecord> {
    from_bytes(bytes).map_err(|source| BadRecord { kind: kind.to_owned(), key: key.to_owned(), source })
}
