//! The versions that a manager has been told.

use std::collections::HashMap;
use std::sync::Arc;

use domain::{FunctionVersion, VersionKey};
use parking_lot::Mutex;

/// How many versions half the memory holds. A version is a few KB.
const HALF: usize = 8_192;

/// Versions by their keys: those used last, at least [`HALF`] and at most twice as many.
pub(super) struct Known(Mutex<Halves>);

struct Halves {
    size: usize,
    recent: HashMap<VersionKey, Arc<FunctionVersion>>,
    older: HashMap<VersionKey, Arc<FunctionVersion>>,
}

impl Known {
    pub(super) fn new() -> Self {
        Self::of(HALF)
    }

    fn of(size: usize) -> Self {
        Self(Mutex::new(Halves { size, recent: HashMap::new(), older: HashMap::new() }))
    }

    pub(super) fn get(&self, key: &VersionKey) -> Option<Arc<FunctionVersion>> {
        let mut halves = self.0.lock();
        if let Some(version) = halves.recent.get(key) {
            return Some(Arc::clone(version));
        }
        let version = halves.older.remove(key)?;
        halves.insert(Arc::clone(&version));
        Some(version)
    }

    pub(super) fn insert(&self, version: Arc<FunctionVersion>) {
        self.0.lock().insert(version);
    }

    pub(super) fn forget(&self, key: &VersionKey) {
        let mut halves = self.0.lock();
        halves.recent.remove(key);
        halves.older.remove(key);
    }
}

impl Halves {
    fn insert(&mut self, version: Arc<FunctionVersion>) {
        if self.recent.len() >= self.size {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(version.key.clone(), version);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::tests::version;

    #[test]
    fn keeps_what_is_used_and_has_an_end() {
        let known = Known::of(10);
        let key = |i: usize| VersionKey(format!("v{i}").into());
        for i in 0..1000 {
            known.insert(Arc::new(FunctionVersion { key: key(i), ..version() }));
            assert!(known.get(&key(0)).is_some(), "used all the time");
        }
        let kept = (1..1000).filter(|i| known.get(&key(*i)).is_some()).count();
        assert!((9..=20).contains(&kept), "{kept}");
        known.forget(&key(0));
        assert!(known.get(&key(0)).is_none());
    }
}
