//! Which workers have which package or image: what is known of it, within bounds.

use std::sync::Arc;

use foldhash::HashMap;

/// Workers remembered of one package. A package on more of them is near enough: the newest are remembered.
pub const HOLDERS: usize = 64;

/// Packages of one generation.
const PACKAGES: usize = 1 << 16;

/// Two generations: what is used moves into the young one; when that is full it becomes the old one, and what was not used since is
/// forgotten. So at least 65,536 packages are remembered, the most recently used ones, and at most twice as many, in some 50 MB.
#[derive(Default)]
pub struct Caches {
    young: HashMap<Arc<str>, Vec<u32>>,
    old: HashMap<Arc<str>, Vec<u32>>,
}

impl Caches {
    pub fn insert(&mut self, package: &str, worker: u32) {
        if !self.young.contains_key(package) {
            let (package, holders) = self.old.remove_entry(package).unwrap_or_else(|| (package.into(), Vec::new()));
            if self.young.len() == PACKAGES {
                self.old = std::mem::take(&mut self.young);
            }
            self.young.insert(package, holders);
        }
        let holders = self.young.get_mut(package).expect("it is there, or was put there just now");
        if !holders.contains(&worker) {
            if holders.len() == HOLDERS {
                holders.remove(0);
            }
            holders.push(worker);
        }
    }

    pub fn remove(&mut self, package: &str, worker: u32) {
        for generation in [&mut self.young, &mut self.old] {
            if let Some(holders) = generation.get_mut(package) {
                holders.retain(|holder| *holder != worker);
                if holders.is_empty() {
                    generation.remove(package);
                }
            }
        }
    }

    /// The oldest first; some may have left the fleet.
    pub fn holders(&self, package: &str) -> &[u32] {
        self.young.get(package).or_else(|| self.old.get(package)).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded() {
        let mut caches = Caches::default();
        for worker in 0..1000 {
            caches.insert("popular", worker);
        }
        assert_eq!(caches.holders("popular"), (1000 - HOLDERS as u32..1000).collect::<Vec<_>>(), "the newest");
        for n in 0..3 * PACKAGES {
            caches.insert(&format!("p{n}"), 1);
            if n % 1000 == 0 {
                caches.insert("popular", 1);
            }
        }
        assert!(caches.young.len() <= PACKAGES && caches.old.len() <= PACKAGES);
        assert!(caches.holders("p0").is_empty(), "not used for long");
        assert_eq!(caches.holders(&format!("p{}", 3 * PACKAGES - PACKAGES / 2)), [1], "of the last 65,536");
        assert_eq!(caches.holders("popular").len(), HOLDERS, "in use");
    }

    #[test]
    fn what_is_dropped_is_gone() {
        let mut caches = Caches::default();
        caches.insert("p", 1);
        caches.insert("p", 2);
        caches.insert("p", 1);
        caches.remove("p", 1);
        assert_eq!(caches.holders("p"), [2]);
        caches.remove("p", 2);
        caches.remove("q", 2);
        assert!(caches.young.is_empty() && caches.old.is_empty());
    }
}
