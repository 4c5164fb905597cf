//! The copy of the metadata in memory: what every read works on.
//!
//! Readers load one of a few dozen immutable maps, without locks. One task, the follower of the store's change feed,
//! replaces the map that a change falls into.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use arc_swap::ArcSwap;
use domain::{FunctionVersion, VersionKey};
use parking_lot::RwLock;
use secrets::Keyring;
use store::{Change, Commit, Op, Record, Snapshot};

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
    /// What is here as it was before, or not at all, since what is stored cannot be read.
    unread: RwLock<BTreeMap<Whole, BadRecord>>,
}

/// Kind and key of what is read and replaced as one: a function with its versions, or an account.
type Whole = (&'static str, String);

/// What a record is a part of.
fn whole(kind: &str, key: &str) -> Option<Whole> {
    match kind {
        FUNCTION => Some((FUNCTION, key.to_owned())),
        VERSION => parse_version_key(key).map(|(function, _)| (FUNCTION, function.to_owned())),
        ACCOUNT => Some((ACCOUNT, key.to_owned())),
        _ => None,
    }
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
    /// What cannot be read, and was not known for it.
    pub unread: Vec<BadRecord>,
    /// What can be read again, or is gone.
    pub mended: Vec<String>,
    /// Functions that could not be read and were written again. Of these a commit is not enough: those before it are missing.
    pub again: HashSet<String>,
}

/// A record that cannot be read.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[error("read {kind} {key} of the metadata: {reason}")]
pub struct BadRecord {
    kind: String,
    key: String,
    /// Of the commit that wrote it.
    revision: u64,
    reason: String,
}

impl Catalog {
    pub fn new(keys: Arc<Keyring>) -> Self {
        Self {
            keys,
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| ArcSwap::default()).collect(),
            accounts: ArcSwap::default(),
            unread: RwLock::default(),
        }
    }

    /// How many functions and accounts cannot be read, and why the first of them cannot.
    pub fn unread(&self) -> Option<(usize, BadRecord)> {
        let unread = self.unread.read();
        unread.values().next().map(|first| (unread.len(), first.clone()))
    }

    /// What the commit of `revision` wrote and cannot be read.
    pub fn unread_of(&self, revision: u64) -> Option<BadRecord> {
        self.unread.read().values().find(|bad| bad.revision == revision).cloned()
    }

    /// Whether what is stored of a function cannot be read.
    pub fn is_unread(&self, function: &str) -> bool {
        self.unread.read().contains_key(&(FUNCTION, function.to_owned()))
    }

    /// What one of these would write over unseen. To delete it needs nobody who can read it.
    pub fn blocked(&self, ops: &[Op]) -> Option<BadRecord> {
        let unread = self.unread.read();
        if unread.is_empty() {
            return None;
        }
        let puts = ops.iter().filter(|op| op.value.is_some());
        puts.filter_map(|op| whole(&op.kind, &op.key)).find_map(|whole| unread.get(&whole).cloned())
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

    /// Takes over everything that is stored; what cannot be read stays as it was. `functions` must have been scanned before
    /// `versions`: what was published in between then is there, and following the feed from before the scans makes the rest right.
    pub fn load(&self, accounts: &Snapshot, functions: &Snapshot, versions: &Snapshot) -> Effects {
        let mut effects = Effects::default();
        let mut all_accounts = HashMap::new();
        for (key, record) in &accounts.records {
            let before = || self.accounts.load().get(key).cloned();
            let read = read_account(key, record);
            if let Some(account) = self.readable((ACCOUNT, key.clone()), read, &mut effects).or_else(before) {
                all_accounts.insert(key.clone(), account);
            }
        }
        let is_stored = |key: &String| accounts.records.binary_search_by_key(&key, |(stored, _)| stored).is_ok();
        self.forget_unread(&mut effects, |(kind, key)| *kind == ACCOUNT && !is_stored(key));
        self.accounts.store(Arc::new(all_accounts));
        self.load_functions("", functions, versions, &mut effects);
        effects
    }

    /// The same of the functions alone whose keys start with `prefix`.
    pub fn load_functions(&self, prefix: &str, functions: &Snapshot, versions: &Snapshot, effects: &mut Effects) {
        let mut loaded: BTreeMap<&str, Result<(Function, u64, Sealing), BadRecord>> = BTreeMap::new();
        for (key, record) in &functions.records {
            let Some(arn) = parse_function_key(key) else { continue };
            let read = self.open::<FunctionRecord>(FUNCTION, key, record);
            let function = |(value, sealing)| {
                (Function { arn, record: value, versions: Default::default() }, record.version, sealing)
            };
            loaded.insert(key, read.map(function));
        }
        for (key, record) in &versions.records {
            let Some((function, number)) = parse_version_key(key) else { continue };
            let Some(loaded) = loaded.get_mut(function) else { continue };
            let Ok((function, ..)) = loaded else { continue };
            match self.open::<Version>(VERSION, key, record) {
                Ok((version, sealing)) => {
                    function.versions.insert(number, Published::stored(&function.arn, version, sealing));
                }
                // Without one of its versions the function is not what it should be.
                Err(bad) => *loaded = Err(bad),
            }
        }
        for (key, old) in self.functions(prefix) {
            if !loaded.contains_key(&*key) {
                self.replace(&key, Some(&old), None, effects);
            }
        }
        let is_gone = |key: &String| key.starts_with(prefix) && !loaded.contains_key(&**key);
        self.forget_unread(effects, |(kind, key)| *kind == FUNCTION && is_gone(key));
        for (key, read) in loaded {
            let read = self.readable((FUNCTION, key.to_owned()), read, effects);
            let Some((function, stored, sealing)) = read else { continue };
            let old = self.function(key);
            let new = Arc::new(Entry::new(function, stored, sealing, old.as_deref()));
            self.replace(key, old.as_ref(), Some(new), effects);
        }
    }

    /// Follows one commit; what cannot be read stays as it was. Only one task may call this, [`Self::load`] or
    /// [`Self::load_functions`] at a time.
    pub fn apply(&self, commit: &Commit) -> Effects {
        let mut effects = Effects { again: self.written_again(commit), ..Effects::default() };
        for change in commit.changes.iter().filter(|change| change.kind == ACCOUNT) {
            let read =
                change.record.as_ref().map_or_else(|| Ok(Account::default()), |new| read_account(&change.key, new));
            let Some(account) = self.readable((ACCOUNT, change.key.clone()), read, &mut effects) else { continue };
            let mut accounts = HashMap::clone(&self.accounts.load());
            accounts.insert(change.key.clone(), account);
            self.accounts.store(Arc::new(accounts));
        }
        for change in commit.changes.iter().filter(|change| change.kind == FUNCTION) {
            let old = self.function(&change.key);
            // A scan may have seen more than this commit.
            if effects.again.contains(&change.key) || old.as_ref().is_some_and(|old| old.stored >= commit.revision) {
                continue;
            }
            let read = self.changed(change, commit, old.as_deref());
            if let Some(new) = self.readable((FUNCTION, change.key.clone()), read, &mut effects) {
                self.replace(&change.key, old.as_ref(), new, &mut effects);
            }
        }
        effects
    }

    /// The functions that cannot be read, and of which a commit writes something. Until they are read anew, it is this commit
    /// that is missing.
    fn written_again(&self, commit: &Commit) -> HashSet<String> {
        let mut unread = self.unread.write();
        if unread.is_empty() {
            return HashSet::new();
        }
        let is_deleted = |key: &str| {
            commit.changes.iter().any(|change| change.kind == FUNCTION && change.key == key && change.record.is_none())
        };
        let mut again = HashSet::new();
        for whole in commit.changes.iter().filter_map(|change| whole(&change.kind, &change.key)) {
            let Some(bad) = unread.get_mut(&whole).filter(|_| whole.0 == FUNCTION && !is_deleted(&whole.1)) else {
                continue;
            };
            bad.revision = commit.revision;
            again.insert(whole.1);
        }
        again
    }

    /// Remembers what cannot be read, and forgets what could not be.
    fn readable<T>(&self, whole: Whole, read: Result<T, BadRecord>, effects: &mut Effects) -> Option<T> {
        let mut unread = self.unread.write();
        match read {
            Ok(read) => {
                effects.mended.extend(unread.remove(&whole).map(|_| whole.1));
                Some(read)
            }
            Err(bad) => {
                let before = unread.insert(whole, bad.clone());
                if before.is_none_or(|before| before.reason != bad.reason) {
                    effects.unread.push(bad);
                }
                None
            }
        }
    }

    fn forget_unread(&self, effects: &mut Effects, is_gone: impl Fn(&Whole) -> bool) {
        self.unread.write().retain(|whole, _| {
            let gone = is_gone(whole);
            effects.mended.extend(gone.then(|| whole.1.clone()));
            !gone
        });
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
                    let (published, sealing) = self.open::<Version>(VERSION, &version.key, record)?;
                    versions.insert(number, Published::stored(&arn, published, sealing));
                }
                None => drop(versions.remove(&number)),
            }
        }
        let (value, sealing) = self.open::<FunctionRecord>(FUNCTION, &change.key, record)?;
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

    fn open<R: HasSettings>(&self, kind: &str, key: &str, record: &Record) -> Result<(R, Sealing), BadRecord> {
        sealed::decode(&self.keys, kind, key, &record.value).map_err(|error| bad(kind, key, record, &error))
    }

    fn shard(&self, key: &str) -> &ArcSwap<Shard> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }
}

fn read_account(key: &str, record: &Record) -> Result<Account, BadRecord> {
    match from_bytes(&record.value) {
        Ok(read) => Ok(Account { record: Arc::new(read), stored: Some(record.version) }),
        Err(error) => Err(bad(ACCOUNT, key, record, &error.into())),
    }
}

fn bad(kind: &str, key: &str, record: &Record, error: &Unreadable) -> BadRecord {
    BadRecord { kind: kind.to_owned(), key: key.to_owned(), revision: record.version, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
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
            let effects = follower.apply(commit);
            assert_eq!(effects.settling.len(), 1, "a new function has its background step to come");
            missed.apply(commit);
        }
        let first = f.settle(&f.record.latest.state_id.clone(), &Ok(()), stamp);
        assert!(first);
        f.update(code(1), f.record.latest.settings.clone(), stamp);
        f.settle(&f.record.latest.state_id.clone(), &Ok(()), stamp);
        history.commit(&f.arn, Some(&f));
        history.commit(&g.arn, None);

        let mut followed = Effects::default();
        for commit in &history.commits[2..] {
            let effects = follower.apply(commit);
            followed.retired.extend(effects.retired);
            followed.dropped.extend(effects.dropped);
        }
        let (functions, versions) = (history.snapshot(FUNCTION), history.snapshot(VERSION));
        let mut scanned = missed.load(&history.snapshot(ACCOUNT), &functions, &versions);
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
            let effects = missed.apply(commit);
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
        let bad = Record { version: 1, value: "no".into() };
        let accounts = Snapshot { revision: 1, records: vec![("000000000000/r".into(), bad)] };
        let catalog = Catalog::new(Arc::new(Keyring::ephemeral()));
        let effects = catalog.load(&accounts, &functions, &empty);
        let named =
            |n: usize, name: &str| assert!(effects.unread[n].to_string().contains(name), "{:?}", effects.unread);
        named(0, "account 000000000000/r");
        named(1, "function 000000000000/r/f");
        assert_eq!(catalog.unread().unwrap().0, 2);
        assert!(catalog.load(&accounts, &functions, &empty).unread.is_empty(), "they are known");
        assert_eq!(catalog.load(&empty, &empty, &empty).mended.len(), 2);
        assert_eq!(catalog.unread(), None);
    }
}
