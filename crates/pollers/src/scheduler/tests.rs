use super::*;
use proptest::prelude::*;

const LIMITS: Limits = Limits { in_flight: 1000, per_function: 1000, bytes: 1 << 20 };

fn queue(number: usize) -> QueueName {
    QueueName(number.to_string().into())
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// So many events of a function.
fn events(number: usize, count: usize) -> Vec<(QueueName, usize, usize)> {
    (0..count).map(|event| (queue(number), event, 10)).collect()
}

fn start_all(scheduler: &mut Scheduler<usize>, now: Duration) -> Vec<QueueName> {
    std::iter::from_fn(|| scheduler.start(now)).map(|(queue, _)| queue).collect()
}

#[test]
fn a_function_grows_while_it_has_more_work_and_succeeds() {
    let mut scheduler = Scheduler::new(LIMITS);
    for round in 0..5 {
        scheduler.leased(Duration::ZERO, events(0, 1000));
        let running = start_all(&mut scheduler, Duration::ZERO).len();
        assert_eq!(running, FIRST_CAP << round);
        for _ in 0..running {
            scheduler.finished(Duration::ZERO, &queue(0), Feedback::Ran(millis(1)));
        }
    }
    // After a throttle not for a second, then by one each round.
    for (now, growth) in [(0, 0), (999, 0), (1000, 1), (1000, 1)] {
        scheduler.leased(millis(now), events(0, 2000));
        let running = start_all(&mut scheduler, millis(now)).len();
        if now == 0 {
            scheduler.finished(millis(now), &queue(0), Feedback::Refused);
        }
        for _ in usize::from(now == 0)..running {
            scheduler.finished(millis(now), &queue(0), Feedback::Ran(millis(1)));
        }
        assert_eq!(scheduler.functions[&queue(0)].cap, running + growth - usize::from(now == 0));
    }
}

#[test]
fn a_function_does_not_exceed_its_reserved_concurrency() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.leased(Duration::ZERO, events(0, 1000));
    for (reserved, runs) in [(Some(3), 3), (Some(20), 3), (Some(20), 6), (Some(20), 12), (None, 20), (Some(0), 1)] {
        scheduler.bound(&queue(0), reserved);
        scheduler.leased(Duration::ZERO, events(0, 1000));
        let first = start_all(&mut scheduler, Duration::ZERO).len();
        for _ in 0..scheduler.functions[&queue(0)].running {
            scheduler.finished(Duration::ZERO, &queue(0), Feedback::Ran(millis(1)));
        }
        assert_eq!(first, runs, "{reserved:?}");
    }
}

#[test]
fn throttles_bring_the_cap_down_to_what_runs_and_then_pause() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.leased(Duration::ZERO, events(0, 48));
    assert_eq!(start_all(&mut scheduler, Duration::ZERO).len(), 16);
    for _ in 0..11 {
        scheduler.finished(Duration::ZERO, &queue(0), Feedback::Refused);
    }
    assert_eq!(start_all(&mut scheduler, Duration::ZERO).len(), 0, "five run, and the cap is five");
    for _ in 0..5 {
        scheduler.finished(Duration::ZERO, &queue(0), Feedback::Refused);
    }
    // Nothing runs: it pauses, each time longer.
    let mut now = Duration::ZERO;
    for pause in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
        now += millis(pause - 1);
        assert_eq!(start_all(&mut scheduler, now).len(), 0);
        now += millis(1);
        assert_eq!(start_all(&mut scheduler, now).len(), 1);
        scheduler.finished(now, &queue(0), Feedback::Refused);
    }
}

#[test]
fn what_has_no_room_is_parked_the_longer_the_longer_there_was_none() {
    let mut scheduler = Scheduler::new(LIMITS);
    assert_eq!(scheduler.ask(Duration::ZERO).most, 48);
    let parked = scheduler.leased(Duration::ZERO, events(0, 50));
    assert_eq!(parked, [48, 49].map(|event| Parked { event, delay: Duration::ZERO }), "nobody had said so before");
    start_all(&mut scheduler, Duration::ZERO);
    assert_eq!(scheduler.ask(Duration::ZERO).most, 0);
    assert_eq!(scheduler.ask(millis(100)), Ask { most: PROBE, but: [queue(0)].into() }, "others may have events");
    for (now, delay) in [(0, 100), (90, 100), (400, 400), (60_000, 5_000)] {
        let parked = scheduler.leased(millis(now), events(0, 1));
        assert_eq!(parked, [Parked { event: 0, delay: millis(delay) }]);
    }
    assert_eq!(scheduler.view(millis(60_000), &queue(0)), View { running: 16, prefetched: 32, parked: 1 });
}

#[test]
fn a_full_function_makes_the_queue_be_probed_now_and_then() {
    let mut scheduler = Scheduler::new(LIMITS);
    assert_eq!(scheduler.ask(Duration::ZERO).most, 48);
    scheduler.leased(Duration::ZERO, events(0, 48));
    start_all(&mut scheduler, Duration::ZERO);
    assert_eq!(scheduler.ask(millis(99)).most, 0);
    assert!(!scheduler.arrived(&queue(0)), "it has enough");
    assert_eq!(scheduler.ask(millis(99)).most, 0);
    assert!(scheduler.arrived(&queue(1)));
    assert_eq!(scheduler.ask(millis(99)).most, PROBE, "an event of another function");
    assert_eq!(scheduler.ask(millis(99)).most, 0);
    // The probe brought something to do: there may be more.
    scheduler.leased(millis(99), events(1, 1));
    assert_eq!(scheduler.ask(millis(99)).most, PROBE);
}

#[test]
fn what_was_prefetched_for_long_goes_back() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.leased(Duration::ZERO, events(0, 48));
    start_all(&mut scheduler, Duration::ZERO);
    assert_eq!(scheduler.sweep(millis(5000)).len(), 0);
    assert_eq!(scheduler.sweep(millis(6001)).len(), 32);
    // Its attempts take long: nothing is prefetched any more.
    assert_eq!(scheduler.leased(millis(6001), events(0, 1)).len(), 1);
}

#[test]
fn hanging_attempts_leave_room_for_other_functions() {
    assert_eq!([0, 1, 8, 100, 1000].map(shared), [1, 1, 7, 87, 875]);
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.unreserved(&queue(0), 100);
    // Two functions whose caps have grown while they ran well.
    for _ in 0..8 {
        for function in 0..2 {
            scheduler.leased(Duration::ZERO, events(function, 1000));
        }
        for queue in start_all(&mut scheduler, Duration::ZERO) {
            scheduler.finished(Duration::ZERO, &queue, Feedback::Ran(millis(1)));
        }
    }
    for function in 0..2 {
        scheduler.leased(Duration::ZERO, events(function, 1000));
    }
    let hanging = start_all(&mut scheduler, Duration::ZERO);
    assert_eq!((hanging.len(), scheduler.accounts[""].running), (87, 87));
    // They are not asked for any more, and others run within what is left.
    assert_eq!(scheduler.ask(PROBE_EVERY).but, BTreeSet::from([queue(0), queue(1)]));
    for function in 2..5 {
        scheduler.leased(PROBE_EVERY, events(function, 1000));
        assert_eq!(start_all(&mut scheduler, PROBE_EVERY), vec![queue(function); GUARANTEED]);
    }
    assert_eq!(scheduler.accounts[""].running, 99);
    // Nor are they in the way of another account's.
    let other = QueueName("arn:aws:lambda:us-east-1:1:function:f".into());
    scheduler.leased(PROBE_EVERY, events(0, 20).into_iter().map(|(_, event, bytes)| (other.clone(), event, bytes)));
    assert_eq!(start_all(&mut scheduler, PROBE_EVERY), vec![other; FIRST_CAP]);
    // What is reserved is not taken from the others.
    scheduler.leased(PROBE_EVERY, events(9, 1000));
    scheduler.bound(&queue(9), Some(50));
    assert_eq!(start_all(&mut scheduler, PROBE_EVERY), vec![queue(9); FIRST_CAP]);
    assert_eq!(scheduler.accounts[""].running, 99);
    scheduler.bound(&queue(9), None);
    assert_eq!(scheduler.accounts[""].running, 99 + FIRST_CAP);
    // One that is over makes room for nobody as long as all are over the share.
    scheduler.finished(PROBE_EVERY, &queue(0), Feedback::Ran(millis(900)));
    assert_eq!(start_all(&mut scheduler, PROBE_EVERY), vec![]);
    for queue in hanging.iter().skip(1) {
        scheduler.finished(PROBE_EVERY, queue, Feedback::Ran(millis(900)));
    }
    assert!(!start_all(&mut scheduler, PROBE_EVERY).is_empty());
}

#[test]
fn memory_is_bounded() {
    let mut scheduler = Scheduler::new(Limits { bytes: 1000, ..LIMITS });
    let large = |count: usize| (0..count).map(|event| (queue(event), event, 100));
    let parked = scheduler.leased(Duration::ZERO, large(20));
    assert_eq!(parked.len(), 0, "each function has its guaranteed events");
    assert_eq!(scheduler.leased(Duration::ZERO, (0..10).map(|event| (queue(0), event, 100))).len(), 7);
}

proptest! {
    /// Whatever happens: no cap is exceeded, the counts agree, nothing gets lost, and a function that has events and
    /// runs none is started.
    #[test]
    fn holds_what_it_promises(
        in_flight in 1usize..30,
        per_function in 1usize..30,
        unreserved in 1u32..30,
        steps in prop::collection::vec((0u8..9, 0usize..4, 1usize..40), 1..200),
    ) {
        let limits = Limits { in_flight, per_function, bytes: 10_000 };
        let mut scheduler = Scheduler::new(limits);
        scheduler.unreserved(&queue(0), unreserved);
        let mut now = Duration::ZERO;
        let mut running: Vec<QueueName> = Vec::new();
        let (mut given, mut back, mut over) = (0, 0, 0);
        for (step, function, count) in steps {
            match step {
                0 | 1 => {
                    let most = scheduler.ask(now).most.min(count);
                    given += most;
                    back += scheduler.leased(now, events(function, most)).len();
                }
                2 => running.extend(start_all(&mut scheduler, now)),
                3..=5 if !running.is_empty() => {
                    let queue = running.swap_remove(count % running.len());
                    let feedback = [Feedback::Ran(millis(5)), Feedback::Refused, Feedback::Untried][usize::from(step) - 3];
                    scheduler.finished(now, &queue, feedback);
                    over += 1;
                }
                6 => back += scheduler.sweep(now).len(),
                7 => scheduler.bound(&queue(function), (count % 2 == 0).then_some(count as u32)),
                _ => now += millis(count as u64 * 20),
            }
            let held: usize = scheduler.functions.values().map(Function::held).sum();
            prop_assert_eq!(held, scheduler.running + scheduler.prefetched);
            prop_assert_eq!(scheduler.bytes, scheduler.prefetched * 10);
            prop_assert_eq!(given, back + over + held);
            prop_assert!(scheduler.running <= in_flight + 4 * GUARANTEED);
            let own = |reserved| {
                let all = scheduler.functions.values().filter(move |function| function.reserved == reserved);
                all.map(|function| function.running).sum::<usize>()
            };
            prop_assert_eq!(scheduler.accounts[""].running, own(false));
            for function in scheduler.functions.values() {
                prop_assert!(function.running <= per_function.max(1));
                prop_assert!((1..=per_function.max(FIRST_CAP)).contains(&function.cap));
            }
        }
        running.extend(start_all(&mut scheduler, now + PAUSE_MAX));
        for function in scheduler.functions.values() {
            prop_assert!(function.prefetched.is_empty() || function.running > 0);
        }
        let prefetched = scheduler.stop().len();
        prop_assert_eq!(given, back + over + running.len() + prefetched);
        prop_assert_eq!(scheduler.ask(now + PROBE_EVERY).most, 0);
    }
}
