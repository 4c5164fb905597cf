//! The copy of the metadata in memory: what every read works on.
//!
//! Readers load one of a few dozen immutable maps, without locks. One task, the follower of the store's change feed,
//! replaces the map that a change falls into.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use arc_swap::ArcSwap;
use domain::{FunctionVersion, VersionKey};
use secrets::Keyring;
use store::{Change, Commit, Snapshot};

use crate::function::{Function, Published, runnable};
use crate::record::{
    ACCOUNT, AccountRecord, FUNCTION, FunctionRecord, Stored, VERSION, Version, from_bytes, parse_function_key,
    parse_version_key,
};
use crate::sealed::{self, HasSettings, Sealing, Unreadable};

/// Enough that a change copies few entries; more would cost memory for nothing.
const SHARDS: usize = 64;

/// One function as it is stored.
#[derive(Debug)]
pub(crate) struct Entry {
    pub function: Function,
    /// Version of its record in the store, which changes with every change of any part of the function.
    pub stored: u64,
    /// How the environments in that record are stored.
    pub sealing: Sealing,
    /// What invocations of `$LATEST` run, if its state allows it.
    pub serving: Arc<FunctionVersion>,
}

impl Entry {
    fn new(function: Function, stored: u64, sealing: Sealing, old: Option<&Self>) -> Self {
        let serving = runnable(&function.arn, function.serving());
        let same = old.filter(|old| *old.serving == serving);
        let serving = same.map_or_else(|| Arc::new(serving), |old| Arc::clone(&old.serving));
        Self { function, stored, sealing, serving }
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
    keys: Arc<Keyring>,
    hasher: RandomState,
    shards: Vec<ArcSwap<Shard>>,
    accounts: ArcSwap<HashMap<String, Account>>,
}

/// What follows from a change.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// No invocation will be sent to these any more.
    pub retired: Vec<VersionKey>,
    /// Packages and images that these functions no longer use; others may.
    pub dropped: Vec<Stored>,
    /// Functions whose background step has to be taken.
    pub settling: Vec<Arc<Entry>>,
    /// Versions whose snapshots have to be taken, each with the key of its function.
    pub snapshots: Vec<(String, Arc<Published>)>,
}

/// A record that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("read {kind} {key} of the metadata: {source}")]
pub struct BadRecord {
    kind: String,
    key: String,
    source: Unreadable,
}

impl Catalog {
    pub fn new(keys: Arc<Keyring>) -> Self {
        Self {
            keys,
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

    /// Whether any function needs a package or an image.
    pub fn uses(&self, stored: &Stored) -> bool {
        let needs = |entry: &Arc<Entry>| entry.function.stored().any(|needed| needed == *stored);
        self.shards.iter().any(|shard| shard.load().values().any(needs))
    }

    /// Counts records whose environments are stored in this way.
    pub fn count(&self, sealing: Sealing) -> usize {
        let entries = self.functions("");
        let records = entries.iter().flat_map(|(_, entry)| {
            std::iter::once(entry.sealing).chain(entry.function.versions.values().map(|published| published.sealing))
        });
        records.filter(|other| *other == sealing).count()
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

        let mut loaded: HashMap<String, (Function, u64, Sealing)> = HashMap::new();
        for (key, record) in &functions.records {
            let Some(arn) = parse_function_key(key) else { continue };
            let (value, sealing) = self.open::<FunctionRecord>(FUNCTION, key, &record.value)?;
            let function = Function { arn, record: value, versions: Default::default() };
            loaded.insert(key.clone(), (function, record.version, sealing));
        }
        for (key, record) in &versions.records {
            let Some((function, number)) = parse_version_key(key) else { continue };
            if let Some((function, ..)) = loaded.get_mut(function) {
                let (version, sealing) = self.open::<Version>(VERSION, key, &record.value)?;
                function.versions.insert(number, Published::stored(&function.arn, version, sealing));
            }
        }
        let mut effects = Effects::default();
        for (key, old) in self.functions("") {
            if !loaded.contains_key(&key) {
                self.replace(&key, Some(&old), None, &mut effects);
            }
        }
        for (key, (function, stored, sealing)) in loaded {
            let old = self.function(&key);
            let new = Arc::new(Entry::new(function, stored, sealing, old.as_deref()));
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
                    let (published, sealing) = self.open::<Version>(VERSION, &version.key, &record.value)?;
                    versions.insert(number, Published::stored(&arn, published, sealing));
                }
                None => drop(versions.remove(&number)),
            }
        }
        let (value, sealing) = self.open::<FunctionRecord>(FUNCTION, &change.key, &record.value)?;
        let function = Function { arn, record: value, versions };
        Ok(Some(Arc::new(Entry::new(function, record.version, sealing, old))))
    }

    fn replace(&self, key: &str, old: Option<&Arc<Entry>>, new: Option<Arc<Entry>>, effects: &mut Effects) {
        if let Some(old) = old {
            let gone = old.keys().filter(|key| !new.as_ref().is_some_and(|new| new.runs(key)));
            effects.retired.extend(gone.cloned());
            let needed = |old: &Stored| new.as_ref().is_some_and(|new| new.function.stored().any(|it| it == *old));
            effects.dropped.extend(old.function.stored().filter(|stored| !needed(stored)));
        }
        let shard = self.shard(key);
        let mut entries = Shard::clone(&shard.load());
        match new {
            Some(new) => {
                if new.function.is_settling() {
                    effects.settling.push(Arc::clone(&new));
                }
                let due = new.function.due_snapshots();
                effects.snapshots.extend(due.map(|version| (key.to_owned(), Arc::clone(version))));
                entries.insert(key.to_owned(), new);
            }
            None => drop(entries.remove(key)),
        }
        shard.store(Arc::new(entries));
    }

    fn open<R: HasSettings>(&self, kind: &str, key: &str, bytes: &[u8]) -> Result<(R, Sealing), BadRecord> {
        sealed::decode(&self.keys, kind, key, bytes).map_err(|source| BadRecord {
            kind: kind.to_owned(),
            key: key.to_owned(),
            source,
        })
    }

    fn shard(&self, key: &str) -> &ArcSwap<Shard> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }
}

fn decode<T: serde::de::DeserializeOwned>(kind: &str, key: &str, bytes: &[u8]) -> Result<T, BadRecord> {
    from_bytes(bytes).map_err(|source| BadRecord { kind: kind.to_owned(), key: key.to_owned(), source: source.into() })
}

#[cfg(test)]
mod tests {
    use store::Record;

    use super::*;
    use crate::function::Stamp;
    use crate::function::tests::{code, new};
    use crate::record::{function_key, version_key};

    /// A store of one's own: all records, and the commits that made them.
    struct History {
        keys: Arc<Keyring>,
        commits: Vec<Commit>,
    }

    impl History {
        fn commit(&mut self, arn: &domain::FunctionArn, function: Option<&Function>) {
            let revision = self.commits.len() as u64 + 1;
            let record = |bytes: Vec<u8>| Some(Record { version: revision, value: bytes.into() });
            let mut changes = Vec::new();
            for (number, published) in function.iter().flat_map(|function| &function.versions) {
                let (key, record) = (
                    version_key(arn, *number),
                    record(sealed::encode(&self.keys, VERSION, &version_key(arn, *number), &published.version)),
                );
                changes.push(Change { kind: VERSION.into(), key, record });
            }
            let record = function.and_then(|function| {
                record(sealed::encode(&self.keys, FUNCTION, &function_key(arn), &function.record))
            });
            changes.push(Change { kind: FUNCTION.into(), key: function_key(arn), record });
            self.commits.push(Commit { revision, changes });
        }

        fn snapshot(&self, kind: &str) -> Snapshot {
            let mut records = std::collections::BTreeMap::new();
            for change in self.commits.iter().flat_map(|commit| &commit.changes).filter(|change| change.kind == kind) {
                match &change.record {
                    Some(record) => drop(records.insert(change.key.clone(), record.clone())),
                    None => drop(records.remove(&change.key)),
                }
            }
            Snapshot { revision: self.commits.len() as u64, records: records.into_iter().collect() }
        }
    }

    fn package(name: &str) -> Stored {
        Stored::Package(name.to_owned())
    }

    #[test]
    fn a_scan_after_missed_commits_ends_as_following_them_does() {
        let mut count = 0;
        let mut id = || {
            count += 1;
            format!("id{count}")
        };
        let stamp = &mut Stamp { now: "now", id: &mut id };
        let keys = Arc::new(Keyring::ephemeral());
        let mut history = History { keys: Arc::clone(&keys), commits: Vec::new() };
        let mut f = Function::create(new("f"), stamp);
        f.publish(None, stamp);
        history.commit(&f.arn, Some(&f));
        let mut other = new("g");
        other.code = code(7);
        let g = Function::create(other, stamp);
        history.commit(&g.arn, Some(&g));

        let (follower, missed) = (Catalog::new(Arc::clone(&keys)), Catalog::new(keys));
        for commit in &history.commits {
            let effects = follower.apply(commit).unwrap();
            assert_eq!(effects.settling.len(), 1, "a new function has its background step to come");
            missed.apply(commit).unwrap();
        }
        let first = f.settle(&f.record.latest.state_id.clone(), &Ok(()), stamp);
        assert!(first);
        f.update(code(1), f.record.latest.settings.clone(), stamp);
        f.settle(&f.record.latest.state_id.clone(), &Ok(()), stamp);
        history.commit(&f.arn, Some(&f));
        history.commit(&g.arn, None);

        let mut followed = Effects::default();
        for commit in &history.commits[2..] {
            let effects = follower.apply(commit).unwrap();
            followed.retired.extend(effects.retired);
            followed.dropped.extend(effects.dropped);
        }
        let (functions, versions) = (history.snapshot(FUNCTION), history.snapshot(VERSION));
        let mut scanned = missed.load(&history.snapshot(ACCOUNT), &functions, &versions).unwrap();
        for effects in [&mut followed, &mut scanned] {
            effects.retired.sort();
            effects.dropped.sort();
        }
        assert_eq!(scanned.retired, followed.retired);
        assert_eq!(scanned.retired.len(), 2, "the old $LATEST of f, and g: {:?}", scanned.retired);
        assert_eq!((&scanned.dropped, &followed.dropped), (&vec![package("7")], &vec![package("7")]), "f:1 has code 0");
        assert!(missed.uses(&package("0")) && missed.uses(&package("1")) && !missed.uses(&package("7")));

        // What the scan has seen comes through the feed once more.
        for commit in &history.commits {
            let effects = missed.apply(commit).unwrap();
            if commit.revision == 3 {
                assert!(effects.retired.is_empty());
            }
        }
        let all = |catalog: &Catalog| -> Vec<_> {
            let entries = catalog.functions("").into_iter();
            entries
                .map(|(key, entry)| (key, entry.stored, entry.function.record.clone(), entry.serving.clone()))
                .collect()
        };
        assert_eq!(all(&missed), all(&follower));
        assert_eq!(all(&missed).len(), 1);
    }

    #[test]
    fn a_record_that_cannot_be_read_is_named() {
        let record = Record { version: 1, value: "{}".into() };
        let functions = Snapshot { revision: 1, records: vec![("000000000000/r/f".into(), record)] };
        let empty = Snapshot { revision: 1, records: Vec::new() };
        let error = Catalog::new(Arc::new(Keyring::ephemeral())).load(&empty, &functions, &empty).unwrap_err();
        assert!(error.to_string().contains("function 000000000000/r/f"), "{error}");
    }
}
