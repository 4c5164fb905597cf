//! A map whose readers never wait.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use arc_swap::ArcSwap;
use foldhash::HashMap;
use foldhash::fast::RandomState;
use parking_lot::Mutex;

const SHARDS: usize = 256;

/// Read on every request, written when a sandbox or version comes or goes. A writer copies one of 256 shards (with ten
/// thousand entries: forty of them) and swaps it in, so a reader takes no lock and meets no writer.
pub struct ReadMap<K, V> {
    hasher: RandomState,
    shards: Box<[Shard<K, V>]>,
}

struct Shard<K, V> {
    entries: ArcSwap<HashMap<K, Arc<V>>>,
    writers: Mutex<()>,
}

impl<K: Hash + Eq + Clone, V> ReadMap<K, V> {
    /// Empty.
    pub fn new() -> Self {
        let shard = |_| Shard { entries: ArcSwap::default(), writers: Mutex::new(()) };
        Self { hasher: RandomState::default(), shards: (0..SHARDS).map(shard).collect() }
    }

    /// The entry of `key`.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        self.shard(key).entries.load().get(key).cloned()
    }

    /// Sets the entry of `key`.
    pub fn insert(&self, key: K, value: Arc<V>) {
        let shard = self.shard(&key);
        let _one_writer = shard.writers.lock();
        let mut entries = HashMap::clone(&shard.entries.load());
        entries.insert(key, value);
        shard.entries.store(Arc::new(entries));
    }

    /// Removes the entry of `key`, if there is one.
    pub fn remove(&self, key: &K) {
        let shard = self.shard(key);
        let _one_writer = shard.writers.lock();
        let mut entries = HashMap::clone(&shard.entries.load());
        if entries.remove(key).is_some() {
            shard.entries.store(Arc::new(entries));
        }
    }

    /// How many entries there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.entries.load().len()).sum()
    }

    fn shard(&self, key: &K) -> &Shard<K, V> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_concurrent_writers_put() {
        let map = ReadMap::new();
        std::thread::scope(|scope| {
            for t in 0..4u64 {
                let map = &map;
                scope.spawn(move || {
                    for i in 0..500 {
                        map.insert(t * 1000 + i, Arc::new(i));
                        assert_eq!(map.get(&(t * 1000 + i)).as_deref(), Some(&i));
                        if i % 2 == 1 {
                            map.remove(&(t * 1000 + i));
                        }
                    }
                });
            }
        });
        assert_eq!(map.len(), 4 * 250);
        map.remove(&99_999);
        assert_eq!(map.get(&0).as_deref(), Some(&0));
        assert_eq!(map.get(&1), None);
    }
}
