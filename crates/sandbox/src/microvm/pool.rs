//! Which VMs wait for a function, and which are wanted: a value, without any VM being moved.
//!
//! Nothing is kept for what nobody asked for. A kind that somebody did ask for has some soon afterwards, while it is among
//! the last kinds asked for, and not for longer than the time of expiry.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Kinds of which VMs wait: as many as a host uses at a time.
pub const POOL_KINDS: usize = 3;

/// What must be the same for a VM to serve. It cannot change once a VM has booted, on either engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind {
    /// MB of the VM, the guest's own part included.
    pub memory_mb: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Disks: the root, what is mounted in it, `/tmp`.
    pub drives: usize,
}

/// One that waits. `V` is a VM, and less in tests.
#[derive(Debug)]
struct Waiting<V> {
    kind: Kind,
    /// Names it.
    number: u64,
    vm: V,
}

/// All of them.
#[derive(Debug)]
pub struct Pool<V> {
    /// How many for each kind.
    each: usize,
    expiry: Duration,
    /// When each was last asked for; the last one first.
    kinds: VecDeque<(Kind, Instant)>,
    waiting: Vec<Waiting<V>>,
    /// The last number given out.
    last: u64,
}

impl<V> Pool<V> {
    /// None yet; `each` for every kind later. A kind that nobody asked for during `expiry` has none any more.
    pub fn new(each: usize, expiry: Duration) -> Self {
        Self { each, expiry, kinds: VecDeque::new(), waiting: Vec::new(), last: 0 }
    }

    /// Somebody asks for one: here is the one that has waited longest, if there is any.
    pub fn take(&mut self, kind: Kind, now: Instant) -> Option<V> {
        if self.each == 0 {
            return None;
        }
        self.forget(kind);
        self.kinds.push_front((kind, now));
        self.kinds.truncate(POOL_KINDS);
        let index = self.waiting.iter().position(|waiting| waiting.kind == kind)?;
        Some(self.waiting.remove(index).vm)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// A kind of which there are too few; the one last asked for comes first.
    pub fn lacking(&self) -> Option<Kind> {
        let count = |kind: Kind| self.waiting.iter().filter(|waiting| waiting.kind == kind).count();
        self.kinds.iter().map(|(kind, _)| *kind).find(|kind| count(*kind) < self.each)
    }

    /// One waits from now on. Its number is for [`Pool::lose`].
    pub fn put(&mut self, kind: Kind, vm: V) -> u64 {
        self.last += 1;
        self.waiting.push(Waiting { kind, number: self.last, vm });
        self.last
    }

    /// No more of this kind until somebody asks again.
    pub fn forget(&mut self, kind: Kind) {
        self.kinds.retain(|(other, _)| *other != kind);
    }

    /// One has died, if it was not taken before. There are no more of its kind until somebody asks again: they may all die.
    pub fn lose(&mut self, number: u64) -> Option<V> {
        let index = self.waiting.iter().position(|waiting| waiting.number == number)?;
        let lost = self.waiting.remove(index);
        self.forget(lost.kind);
        Some(lost.vm)
    }

    /// Those that are not wanted any more.
    pub fn expire(&mut self, now: Instant) -> Vec<V> {
        let expiry = self.expiry;
        self.kinds.retain(|(_, asked)| now.saturating_duration_since(*asked) < expiry);
        let kinds = &self.kinds;
        let unwanted = self.waiting.extract_if(.., |waiting| !kinds.iter().any(|(kind, _)| *kind == waiting.kind));
        unwanted.map(|waiting| waiting.vm).collect()
    }

    /// When the next of them is not wanted any more.
    pub fn expiry(&self) -> Option<Instant> {
        self.kinds.back().map(|(_, asked)| *asked + self.expiry)
    }

    /// Its place is needed: one of the kind that was not asked for longest, and no more of that kind until somebody asks.
    pub fn yield_one(&mut self) -> Option<V> {
        let asked = |kind: Kind| self.kinds.iter().position(|(other, _)| *other == kind).unwrap_or(usize::MAX);
        let (index, _) = self.waiting.iter().enumerate().max_by_key(|(_, waiting)| asked(waiting.kind))?;
        let yielded = self.waiting.remove(index);
        self.forget(yielded.kind);
        Some(yielded.vm)
    }

    /// Nobody needs them from now on.
    pub fn drain(&mut self) -> Vec<V> {
        self.kinds.clear();
        self.waiting.drain(..).map(|waiting| waiting.vm).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXPIRY: Duration = Duration::from_secs(300);

    fn kind(memory_mb: u32) -> Kind {
        Kind { memory_mb, vcpus: 1, drives: 3 }
    }

    /// Adds what is lacking; each VM is its memory. How many were.
    fn fill(pool: &mut Pool<u32>) -> usize {
        let before = pool.waiting.len();
        while let Some(kind) = pool.lacking() {
            pool.put(kind, kind.memory_mb);
        }
        pool.waiting.len() - before
    }

    #[test]
    fn there_are_some_of_what_was_asked_for() {
        let (mut pool, now) = (Pool::new(2, EXPIRY), Instant::now());
        assert_eq!(fill(&mut pool), 0, "nobody asked");
        assert_eq!(pool.take(kind(1), now), None);
        assert_eq!(fill(&mut pool), 2);
        assert_eq!(pool.take(kind(2), now), None, "another kind");
        assert_eq!(pool.take(Kind { drives: 4, ..kind(1) }, now), None, "and another");
        assert_eq!(pool.take(kind(1), now), Some(1));
        assert_eq!(fill(&mut pool), 1 + 2 + 2);
        let mut none = Pool::new(0, EXPIRY);
        assert_eq!((none.take(kind(1), now), fill(&mut none), none.expiry()), (None, 0, None));
    }

    #[test]
    fn there_are_none_of_what_nobody_asks_for_any_more() {
        let (mut pool, start) = (Pool::new(1, EXPIRY), Instant::now());
        for memory_mb in 1..=4 {
            pool.take(kind(memory_mb), start);
            fill(&mut pool);
            pool.expire(start);
            assert!(pool.waiting.len() <= POOL_KINDS);
        }
        let later = start + Duration::from_secs(10);
        assert_eq!(pool.take(kind(4), later), Some(4));
        fill(&mut pool);
        assert_eq!(pool.expiry(), Some(start + EXPIRY));
        assert_eq!(pool.expire(start + EXPIRY), [2, 3]);
        assert_eq!(pool.expire(later + EXPIRY), [4]);
        assert_eq!((pool.lacking(), pool.expiry()), (None, None));
    }

    #[test]
    fn what_dies_or_makes_room_is_not_made_again_unasked() {
        let (mut pool, now) = (Pool::new(1, EXPIRY), Instant::now());
        for memory_mb in 1..=3 {
            pool.take(kind(memory_mb), now);
        }
        fill(&mut pool);
        assert_eq!(pool.yield_one(), Some(1), "asked for before the others");
        let number = pool.waiting[0].number;
        let lost = pool.lose(number).unwrap();
        assert_eq!(pool.lose(number), None);
        assert_eq!(fill(&mut pool), 0);
        pool.take(kind(lost), now);
        assert_eq!(fill(&mut pool), 1);
        assert_eq!(pool.drain().len(), 2);
        assert_eq!((pool.yield_one(), fill(&mut pool)), (None, 0));
    }

    proptest! {
        /// What leaves the pool never comes back, and there are never more than `each` of each of the kinds.
        #[test]
        fn nothing_is_given_out_twice(steps in prop::collection::vec((0..6u8, 0..5u32), 0..60), each in 0..3usize) {
            let (mut pool, start) = (Pool::new(each, EXPIRY), Instant::now());
            let (mut made, mut out) = (0u64, Vec::new());
            for (time, (step, which)) in steps.into_iter().enumerate() {
                let now = start + Duration::from_secs(40 * time as u64);
                match step {
                    0 | 1 => out.extend(pool.take(kind(which), now)),
                    2 | 3 => if let Some(kind) = pool.lacking() {
                        made += 1;
                        pool.put(kind, made);
                    },
                    4 => out.extend(pool.lose(u64::from(which))),
                    _ => out.extend(if which == 0 { pool.yield_one().into_iter().collect() } else { pool.expire(now) }),
                }
                let all = out.iter().chain(pool.waiting.iter().map(|waiting| &waiting.vm));
                let mut all: Vec<_> = all.copied().collect();
                all.sort_unstable();
                prop_assert_eq!(all, (1..=made).collect::<Vec<_>>());
                for (kind, _) in &pool.kinds {
                    prop_assert!(pool.waiting.iter().filter(|waiting| waiting.kind == *kind).count() <= each);
                }
            }
        }
    }
}
