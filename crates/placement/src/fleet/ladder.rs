//! Workers of one size in the order in which everybody prefers them.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use domain::WorkerId;

use crate::cost::LEVELS;

/// Where a worker stands on its rung: the one with the most free memory first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    pub free_mb: Reverse<u64>,
    pub worker: WorkerId,
    pub number: u32,
}

/// A rung for each level of load, and above them a tree that knows the most free memory below each of its nodes: whom a
/// sandbox does not fit is stepped over, not looked at.
pub struct Ladder {
    rungs: Box<[BTreeSet<Spot>]>,
    /// A heap: the children of `n` are `2n` and `2n + 1`, the leaves are the rungs.
    most_free: Box<[Option<u64>]>,
}

impl Ladder {
    pub fn new() -> Self {
        Self { rungs: (0..LEVELS).map(|_| BTreeSet::new()).collect(), most_free: vec![None; 2 * LEVELS].into() }
    }

    pub fn insert(&mut self, level: usize, spot: Spot) {
        self.rungs[level].insert(spot);
        self.update(level);
    }

    pub fn remove(&mut self, level: usize, spot: &Spot) {
        self.rungs[level].remove(spot);
        self.update(level);
    }

    /// The most free memory of all.
    pub fn most_free_mb(&self) -> Option<u64> {
        self.most_free[1]
    }

    /// Those with `memory_mb` free, least loaded first.
    pub fn with_free(&self, memory_mb: u64) -> impl Iterator<Item = &Spot> {
        let mut from = 0;
        let rungs = std::iter::from_fn(move || {
            let rung = self.next(from, memory_mb)?;
            from = rung + 1;
            Some(self.rungs[rung].iter().take_while(move |spot| spot.free_mb.0 >= memory_mb))
        });
        rungs.flatten()
    }

    fn update(&mut self, level: usize) {
        let mut node = LEVELS + level;
        let mut most = self.rungs[level].first().map(|spot| spot.free_mb.0);
        while self.most_free[node] != most {
            self.most_free[node] = most;
            node /= 2;
            if node == 0 {
                return;
            }
            most = self.most_free[2 * node].max(self.most_free[2 * node + 1]);
        }
    }

    /// The first rung, `from` on, on which somebody has so much free.
    fn next(&self, from: usize, memory_mb: u64) -> Option<usize> {
        let enough = |node: usize| self.most_free[node].is_some_and(|free| free >= memory_mb);
        if from == LEVELS {
            return None;
        }
        let mut node = LEVELS + from;
        while !enough(node) {
            // Right of a right child is what is right of its parent; right of the root (1, odd as they are) is nothing.
            while node % 2 == 1 {
                node /= 2;
            }
            if node == 0 {
                return None;
            }
            node += 1;
        }
        while node < LEVELS {
            node *= 2;
            if !enough(node) {
                node += 1;
            }
        }
        Some(node - LEVELS)
    }
}
