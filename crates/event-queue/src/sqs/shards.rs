//! Shuffle-sharding: which SQS queue an event goes to, and which are looked into next. Without IO and clock.

use std::time::Duration;

use tokio::time::Instant;

/// A shard that was found empty is looked into again after this, unless this process puts something in.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// SQS hands out this many messages at once.
const MOST: usize = 10;

/// What this process knows of its shards.
#[derive(Debug)]
pub(super) struct Shards {
    shards: Vec<Shard>,
    /// Whose turn it is.
    next: usize,
    /// When their lengths were asked for.
    measured: Option<Instant>,
}

#[derive(Clone, Default, Debug)]
struct Shard {
    /// Found empty: not to be looked into before.
    rests: Option<Instant>,
    /// About how many messages wait in it.
    length: u64,
}

/// The two shards that a name may use, out of `count`; the same in every process and version. Two names have both in
/// common once in `count * (count - 1) / 2` pairs.
pub(super) fn pair(name: &str, count: usize) -> (usize, usize) {
    // FNV-1a: simple, and fixed for good.
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    // The low bits of FNV are weak for similar names.
    let hash = hash ^ hash >> 29;
    let count = count as u64;
    let first = hash % count;
    let second = if count > 1 { (first + 1 + (hash / count) % (count - 1)) % count } else { first };
    (first as usize, second as usize)
}

impl Shards {
    pub(super) fn new(count: usize) -> Self {
        Self { shards: vec![Shard::default(); count], next: 0, measured: None }
    }

    /// The shorter of the name's two shards: another's backlog in one of them does not delay its events.
    pub(super) fn choose(&mut self, name: &str) -> usize {
        let (a, b) = pair(name, self.shards.len());
        let chosen = if self.shards[a].length <= self.shards[b].length { a } else { b };
        self.shards[chosen].length += 1;
        chosen
    }

    /// Whether the lengths are to be asked for; says so to one caller a second.
    pub(super) fn measure(&mut self, now: Instant) -> bool {
        let due = self.measured.is_none_or(|then| now >= then + LOOK);
        if due {
            self.measured = Some(now);
        }
        due
    }

    /// A shard's length as SQS has it.
    pub(super) fn measured(&mut self, shard: usize, length: u64) {
        self.shards[shard].length = length;
    }

    /// This process has put something in.
    pub(super) fn filled(&mut self, shard: usize) {
        self.shards[shard].rests = None;
    }

    /// Nothing was found, or it could not be asked.
    pub(super) fn rest(&mut self, shard: usize, now: Instant) {
        self.shards[shard].rests = Some(now + LOOK);
    }

    /// Whom to ask, for how many messages each; together no more than `wanted`. Begins behind where the last turn ended.
    pub(super) fn turn(&mut self, wanted: usize, now: Instant) -> Vec<(usize, usize)> {
        let count = self.shards.len();
        let awake = |shard: &usize| self.shards[*shard].rests.is_none_or(|until| now >= until);
        let mut awake: Vec<_> = (0..count).map(|step| (self.next + step) % count).filter(awake).collect();
        awake.truncate(wanted);
        let Some(last) = awake.last() else { return Vec::new() };
        self.next = (last + 1) % count;
        let share = (wanted / awake.len()).min(MOST);
        awake.into_iter().map(|shard| (shard, share)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn pairs_are_spread_and_stay() {
        assert_eq!(pair("f", 1), (0, 0));
        let pairs: Vec<_> = (0..2000).map(|n| pair(&format!("function-{n}"), 8)).collect();
        assert!(pairs.iter().all(|(a, b)| a != b && *a < 8 && *b < 8));
        for shard in 0..8 {
            let share = pairs.iter().filter(|(a, b)| *a == shard || *b == shard).count();
            assert!((400..600).contains(&share), "{shard}: {share}");
        }
        assert_eq!(pairs.into_iter().collect::<BTreeSet<_>>().len(), 56);
        // Of a released version: events are where they were.
        assert_eq!(pair("function-1", 8), pair("function-1", 8));
    }

    #[test]
    fn a_backlog_in_one_shard_is_avoided() {
        let mut shards = Shards::new(8);
        let (a, b) = pair("f", 8);
        shards.measured(a, 1000);
        assert!((0..100).all(|_| shards.choose("f") == b));
        shards.measured(b, 5000);
        assert_eq!(shards.choose("f"), a);
    }

    #[test]
    fn turns_go_round_those_that_are_awake() {
        let now = Instant::now();
        let mut shards = Shards::new(4);
        assert_eq!(shards.turn(1, now), [(0, 1)]);
        assert_eq!(shards.turn(2, now), [(1, 1), (2, 1)]);
        assert_eq!(shards.turn(100, now), [(3, 10), (0, 10), (1, 10), (2, 10)]);
        shards.rest(3, now);
        shards.rest(0, now);
        assert_eq!(shards.turn(7, now), [(1, 3), (2, 3)]);
        shards.filled(0);
        assert_eq!(shards.turn(7, now), [(0, 2), (1, 2), (2, 2)]);
        assert_eq!(shards.turn(4, now + LOOK).len(), 4);
        assert_eq!(shards.turn(0, now), []);
        assert!(shards.measure(now) && !shards.measure(now) && shards.measure(now + LOOK));
    }
}
