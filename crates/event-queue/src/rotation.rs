//! Whose turn it is: the choice between queues, without IO and clock.
//!
//! Queues with ready events stand in a ring and get turns in order; the others sleep until their next event is due.
//! A queue that wakes joins the ring's end, so its first event waits for at most one turn of each other ready queue,
//! however long their backlogs are.
//!
//! ```text
//!            due ≤ now                      turn
//!  sleeping ───────────► ring: b c d … a ◄───────► in the hands of the writer
//!      ▲                                              │ nothing more is ready
//!      └──────────────────────────────────────────────┘
//! ```

use std::collections::{BTreeSet, HashMap, VecDeque};

/// A queue's number in its file.
pub(crate) type Number = u32;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// In the ring.
    Ready,
    /// Until then (milliseconds since 1970).
    Sleeping(i64),
}

/// The ring of ready queues and the sleeping ones. One entry per queue, none per event.
#[derive(Debug, Default)]
pub(crate) struct Rotation {
    states: HashMap<Number, State>,
    ring: VecDeque<Number>,
    sleeping: BTreeSet<(i64, Number)>,
}

impl Rotation {
    /// An event of this queue is due at `due` (milliseconds since 1970).
    pub(crate) fn note(&mut self, queue: Number, due: i64) {
        match self.states.get(&queue) {
            Some(State::Ready) => return,
            Some(State::Sleeping(before)) if *before <= due => return,
            Some(State::Sleeping(before)) => {
                self.sleeping.remove(&(*before, queue));
            }
            None => {}
        }
        self.states.insert(queue, State::Sleeping(due));
        self.sleeping.insert((due, queue));
    }

    /// Lets the queues whose time has come join the ring; whether any did.
    pub(crate) fn wake(&mut self, now: i64) -> bool {
        let mut woke = false;
        while let Some((due, queue)) = self.sleeping.first().copied() {
            if due > now {
                break;
            }
            self.sleeping.pop_first();
            self.states.insert(queue, State::Ready);
            self.ring.push_back(queue);
            woke = true;
        }
        woke
    }

    /// Whether a queue stands in the ring.
    pub(crate) fn any_ready(&self) -> bool {
        !self.ring.is_empty()
    }

    /// When the next sleeping queue wakes (milliseconds since 1970).
    pub(crate) fn next_due(&self) -> Option<i64> {
        self.sleeping.first().map(|(due, _)| *due)
    }

    /// The next turn: the queue and how many of `wanted` events it may give. The ring's queues share `wanted` evenly;
    /// each gives at least one. The queue is out of the rotation until [`Rotation::note`] brings it back. Queues in
    /// `but` lose their turn.
    pub(crate) fn turn(&mut self, wanted: usize, but: &BTreeSet<Number>) -> Option<(Number, usize)> {
        if wanted == 0 {
            return None;
        }
        let at = self.ring.iter().position(|queue| !but.contains(queue))?;
        self.ring.rotate_left(at);
        let passed = but.iter().filter(|queue| self.states.get(queue) == Some(&State::Ready)).count();
        let share = (wanted / (self.ring.len() - passed)).max(1);
        let queue = self.ring.pop_front()?;
        self.states.remove(&queue);
        Some((queue, share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NONE: BTreeSet<Number> = BTreeSet::new();

    #[test]
    fn turns_go_round_and_share() {
        let mut rotation = Rotation::default();
        for queue in 0..3 {
            rotation.note(queue, 10);
        }
        assert!(!rotation.wake(9));
        assert_eq!((rotation.turn(5, &NONE), rotation.next_due()), (None, Some(10)));
        assert!(rotation.wake(10));
        assert_eq!(rotation.turn(0, &NONE), None);
        assert_eq!(rotation.turn(7, &NONE), Some((0, 2)));
        rotation.note(0, 10);
        rotation.wake(10);
        assert_eq!(rotation.turn(1, &NONE), Some((1, 1)));
        assert_eq!(rotation.turn(1, &NONE), Some((2, 1)));
        assert_eq!(rotation.turn(1, &NONE), Some((0, 1)));
        assert_eq!(rotation.turn(1, &NONE), None);
    }

    #[test]
    fn some_queues_may_be_passed_over() {
        let mut rotation = Rotation::default();
        for queue in 0..4 {
            rotation.note(queue, 0);
        }
        rotation.wake(0);
        let but = BTreeSet::from([0, 2, 9]);
        assert_eq!(rotation.turn(10, &but), Some((1, 5)));
        assert_eq!(rotation.turn(10, &but), Some((3, 10)));
        assert_eq!(rotation.turn(10, &but), None);
        assert!(rotation.any_ready());
        assert_eq!(rotation.turn(10, &NONE), Some((0, 5)), "both are still there");
        assert_eq!(rotation.turn(10, &NONE), Some((2, 10)));
    }

    #[test]
    fn an_earlier_event_wakes_a_sleeping_queue_earlier() {
        let mut rotation = Rotation::default();
        rotation.note(1, 50);
        rotation.note(1, 20);
        rotation.note(1, 90);
        assert_eq!(rotation.next_due(), Some(20));
        assert!(rotation.wake(20));
        assert_eq!(rotation.next_due(), None);
    }

    proptest! {
        /// However many events the others have, a queue's first event comes within one turn of each other queue.
        #[test]
        fn a_new_queue_waits_for_one_turn_of_each(others in 1u32..50, batch in 1usize..20) {
            let mut rotation = Rotation::default();
            for queue in 0..others {
                rotation.note(queue, 0);
            }
            rotation.wake(0);
            rotation.note(others, 0);
            rotation.wake(0);
            for turns in 0.. {
                prop_assert!(turns <= others);
                let (queue, share) = rotation.turn(batch, &NONE).unwrap();
                prop_assert!((1..=batch).contains(&share));
                if queue == others {
                    break;
                }
                // The backlog never ends.
                rotation.note(queue, 0);
                rotation.wake(0);
            }
        }

        /// A queue is in exactly one place, and none gets lost.
        #[test]
        fn states_agree(
            steps in prop::collection::vec((0u32..5, 0i64..20, 0u8..3), 0..100),
            but in prop::collection::btree_set(0u32..5, 0..3),
        ) {
            let mut rotation = Rotation::default();
            let mut present = std::collections::BTreeSet::new();
            for (queue, time, step) in steps {
                match step {
                    0 => {
                        rotation.note(queue, time);
                        present.insert(queue);
                    }
                    1 => {
                        rotation.wake(time);
                    }
                    _ => {
                        if let Some((queue, _)) = rotation.turn(3, &but) {
                            prop_assert!(present.remove(&queue) && !but.contains(&queue));
                        }
                    }
                }
                let mut found: Vec<_> = rotation.ring.iter().copied().chain(rotation.sleeping.iter().map(|s| s.1)).collect();
                found.sort_unstable();
                prop_assert_eq!(found, present.iter().copied().collect::<Vec<_>>());
            }
        }
    }
}
