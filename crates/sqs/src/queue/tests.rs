use proptest::prelude::*;

use super::*;

fn meta(seq: Seq, group: Option<&str>, sent: Millis) -> Meta {
    Meta {
        id: Uuid::from_u128(seq.unsigned_abs().into()),
        sent,
        group: group.map(Into::into),
        state: State::Visible,
        receives: 0,
        earlier: 0,
        first_received: None,
    }
}

fn receipt(queue: &Queue, seq: Seq) -> Receipt {
    let meta = queue.get(seq).unwrap();
    Receipt { queue: 1, seq, receive: meta.all_receives(), id: meta.id }
}

#[test]
fn a_message_comes_back_when_its_timeout_ends() {
    let mut queue = Queue::new(false);
    queue.insert(1, meta(1, None, 0));
    assert_eq!(queue.receive(0, 10, 1000, None).received, [1]);
    let first = receipt(&queue, 1);
    assert!(queue.receive(999, 10, 1000, None).received.is_empty());
    assert_eq!(queue.next_due(), Some(1000));
    assert_eq!(queue.receive(1000, 10, 1000, None).received, [1]);
    assert_eq!(queue.get(1).unwrap().receives, 2);
    // Each receive has its own receipt.
    assert_eq!(queue.holder(&first), None);
    assert!(queue.contains(&first));
    assert_eq!(queue.change_visibility(&first, 1000, 0), Err(Unusable::Stale));
    let second = receipt(&queue, 1);
    assert_eq!(queue.change_visibility(&second, 1500, 0), Ok(1));
    assert_eq!(queue.change_visibility(&second, 1500, 5), Err(Unusable::NotInFlight));
    assert_eq!(queue.counts(1500), Counts { visible: 1, in_flight: 0, delayed: 0 });
}

#[test]
fn no_message_is_invisible_for_more_than_twelve_hours() {
    let mut queue = Queue::new(false);
    queue.insert(1, meta(1, None, 0));
    queue.receive(0, 1, 30_000, None);
    let receipt = receipt(&queue, 1);
    assert_eq!(queue.change_visibility(&receipt, 1000, MAX_INVISIBLE), Err(Unusable::TooLong));
    assert_eq!(queue.change_visibility(&receipt, 1000, MAX_INVISIBLE - 1000), Ok(1));
}

#[test]
fn a_message_received_too_often_is_dead() {
    let mut queue = Queue::new(false);
    queue.insert(1, meta(1, None, 0));
    queue.insert(2, meta(2, None, 0));
    assert_eq!(queue.receive(0, 1, 0, Some(1)).received, [1]);
    let taken = queue.receive(1, 10, 1000, Some(1));
    assert_eq!(taken.received, [2]);
    assert_eq!(taken.dead.iter().map(|(seq, meta)| (*seq, meta.receives)).collect::<Vec<_>>(), [(1, 1)]);
    assert_eq!(queue.get(1), None);
}

#[test]
fn a_group_waits_for_its_messages_in_flight() {
    let mut queue = Queue::new(true);
    for (seq, group) in [(1, "a"), (2, "b"), (3, "a"), (4, "a")] {
        queue.insert(seq, meta(seq, Some(group), 0));
    }
    assert_eq!(queue.receive(0, 2, 1000, None).received, [1, 3]);
    assert_eq!(queue.receive(0, 10, 1000, None).received, [2]);
    queue.remove(1);
    assert!(queue.receive(500, 10, 1000, None).received.is_empty());
    // 3 comes back before 4 is handed out.
    assert_eq!(queue.receive(1000, 1, 1000, None).received, [2]);
    assert_eq!(queue.receive(1000, 1, 1000, None).received, [3]);
    queue.remove(3);
    assert_eq!(queue.receive(1001, 1, 1000, None).received, [4]);
}

#[test]
fn a_duplicate_is_known_for_five_minutes() {
    let mut queue = Queue::new(true);
    let key = |id: &str| DedupKey { scope: String::new(), id: id.to_owned() };
    let original = Original { id: Uuid::nil(), seq: 1, until: DEDUPLICATION };
    queue.remember(key("x"), original);
    assert_eq!(queue.original(&key("x"), DEDUPLICATION - 1), Some(original));
    assert_eq!(queue.original(&key("y"), 0), None);
    queue.purge();
    assert_eq!(queue.original(&key("x"), 0), Some(original));
    assert_eq!(queue.original(&key("x"), DEDUPLICATION), None);
    // Remembered anew, it is not forgotten when the first memory ends.
    queue.remember(key("x"), Original { until: 3 * DEDUPLICATION, ..original });
    assert!(queue.original(&key("x"), 2 * DEDUPLICATION).is_some());
}

#[derive(Debug, Clone)]
enum Step {
    Send { group: u8, delay: Millis },
    Receive { most: usize, visibility: Millis, dead_after: Option<u32> },
    Delete(prop::sample::Index),
    Change(prop::sample::Index, Millis),
    Expire(Millis),
    Pass(Millis),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..4, prop_oneof![3 => Just(0), 1 => 0i64..50]).prop_map(|(group, delay)| Step::Send { group, delay }),
        4 => (1usize..5, 0i64..100, prop::option::weighted(0.2, 1u32..3))
            .prop_map(|(most, visibility, dead_after)| Step::Receive { most, visibility, dead_after }),
        2 => any::<prop::sample::Index>().prop_map(Step::Delete),
        2 => (any::<prop::sample::Index>(), 0i64..100).prop_map(|(index, timeout)| Step::Change(index, timeout)),
        1 => (200i64..500).prop_map(Step::Expire),
        2 => (0i64..60).prop_map(Step::Pass),
    ]
}

/// A message as a naive queue would see it: a list that is searched.
fn visible(meta: &Meta, now: Millis) -> bool {
    meta.state.until().is_none_or(|until| until <= now)
}

fn in_flight(meta: &Meta, now: Millis) -> bool {
    matches!(meta.state, State::InFlight { until, .. } if until > now)
}

/// What a receive must hand out, found by searching.
fn expected(messages: &BTreeMap<Seq, Meta>, fifo: bool, now: Millis, most: usize) -> Vec<Seq> {
    let ready = |(_, meta): &(&Seq, &Meta)| visible(meta, now);
    if !fifo {
        return messages.iter().filter(ready).map(|(seq, _)| *seq).take(most).collect();
    }
    let mut groups: BTreeMap<&str, Vec<(&Seq, &Meta)>> = BTreeMap::new();
    for (seq, meta) in messages {
        groups.entry(meta.group.as_deref().unwrap_or_default()).or_default().push((seq, meta));
    }
    groups.retain(|_, members| !members.iter().any(|(_, meta)| in_flight(meta, now)));
    let mut runs: Vec<Vec<Seq>> = groups
        .into_values()
        .map(|members| members.into_iter().take_while(ready).map(|(seq, _)| *seq).collect())
        .collect();
    runs.sort();
    runs.into_iter().flatten().take(most).collect()
}

proptest! {
    #[test]
    fn does_what_a_search_of_all_messages_would(fifo: bool, steps in prop::collection::vec(step(), 1..120)) {
        let mut queue = Queue::new(fifo);
        let (mut now, mut next, mut receipts) = (0, 1, Vec::new());
        let mut alive: BTreeSet<Seq> = BTreeSet::new();
        for step in steps {
            let before: BTreeMap<Seq, Meta> =
                alive.iter().map(|seq| (*seq, queue.get(*seq).expect("no message is lost").clone())).collect();
            match step {
                Step::Send { group, delay } => {
                    let state = if delay == 0 { State::Visible } else { State::Delayed { until: now + delay } };
                    queue.insert(next, Meta { state, ..meta(next, Some(&group.to_string()), now) });
                    alive.insert(next);
                    next += 1;
                }
                Step::Receive { most, visibility, dead_after: None } => {
                    let taken = queue.receive(now, most, visibility, None);
                    prop_assert_eq!(&taken.received, &expected(&before, fifo, now, most));
                    receipts.extend(taken.received.iter().map(|seq| receipt(&queue, *seq)));
                }
                Step::Receive { most, visibility, dead_after: Some(limit) } => {
                    let taken = queue.receive(now, most, visibility, Some(limit));
                    prop_assert!(taken.received.len() <= most);
                    for seq in &taken.received {
                        prop_assert!(before[seq].receives < limit && visible(&before[seq], now));
                    }
                    for (seq, meta) in &taken.dead {
                        prop_assert!(meta.receives >= limit && visible(&before[seq], now));
                        alive.remove(seq);
                    }
                    receipts.extend(taken.received.iter().map(|seq| receipt(&queue, *seq)));
                }
                Step::Delete(index) if !receipts.is_empty() => {
                    let receipt = index.get(&receipts);
                    if let Some((seq, _)) = queue.holder(receipt) {
                        queue.remove(seq);
                        alive.remove(&seq);
                    }
                }
                Step::Change(index, timeout) if !receipts.is_empty() => {
                    let receipt = index.get(&receipts);
                    let flying = before.get(&receipt.seq).is_some_and(|meta| {
                        in_flight(meta, now) && meta.all_receives() == receipt.receive
                    });
                    prop_assert_eq!(queue.change_visibility(receipt, now, timeout).is_ok(), flying);
                }
                Step::Expire(age) => {
                    for seq in queue.expire(now - age) {
                        prop_assert!(before[&seq].sent <= now - age);
                        alive.remove(&seq);
                    }
                    prop_assert!(alive.iter().all(|seq| before[seq].sent > now - age));
                }
                Step::Pass(millis) => now += millis,
                Step::Delete(_) | Step::Change(..) => {}
            }
            let counts = queue.counts(now);
            let count = |test: fn(&Meta, Millis) -> bool| {
                alive.iter().filter_map(|seq| queue.get(*seq)).filter(|meta| test(meta, now)).count()
            };
            prop_assert_eq!(counts.in_flight, count(in_flight));
            prop_assert_eq!(counts.visible, count(visible));
            prop_assert_eq!(counts.visible + counts.in_flight + counts.delayed, alive.len());
        }
    }
}
