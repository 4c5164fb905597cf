//! Any order of events: no panic, one outcome per invocation, `idle` once per completed one, nothing after the end.

use bytes::Bytes;
use proptest::prelude::*;

use super::super::*;
use super::driver::*;

#[derive(Clone, Debug)]
enum Op {
    Invoke { tail: bool },
    Next,
    Answer { right: bool, attempt: Option<bool>, error: bool },
    InitError,
    Undelivered,
    Register { name: u8, shutdown: bool },
    ExtensionNext(prop::sample::Index),
    ExtensionError(prop::sample::Index, bool),
    Started,
    StartFails { host: bool },
    Exit { runtime: bool, oom: bool },
    Killed { done: bool },
    Pass(u64),
    Shutdown,
    Gone,
    RestoreNext,
    HangUp,
    Restored,
    RestoreError,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => any::<bool>().prop_map(|tail| Op::Invoke { tail }),
        8 => Just(Op::Next),
        6 => (prop::bool::weighted(0.8), prop::option::of(prop::bool::weighted(0.8)), any::<bool>())
            .prop_map(|(right, attempt, error)| Op::Answer { right, attempt, error }),
        1 => Just(Op::InitError),
        1 => Just(Op::Undelivered),
        4 => (0u8..4, any::<bool>()).prop_map(|(name, shutdown)| Op::Register { name, shutdown }),
        8 => any::<prop::sample::Index>().prop_map(Op::ExtensionNext),
        1 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(i, init)| Op::ExtensionError(i, init)),
        8 => Just(Op::Started),
        1 => any::<bool>().prop_map(|host| Op::StartFails { host }),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(runtime, oom)| Op::Exit { runtime, oom }),
        4 => prop::bool::weighted(0.95).prop_map(|done| Op::Killed { done }),
        4 => (0u64..4000).prop_map(Op::Pass),
        1 => Just(Op::Shutdown),
        1 => prop::bool::weighted(0.1).prop_map(|gone| if gone { Op::Gone } else { Op::Next }),
        4 => Just(Op::RestoreNext),
        1 => Just(Op::HangUp),
        4 => Just(Op::Restored),
        1 => Just(Op::RestoreError),
    ]
}

impl Driver {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Invoke { tail } => drop(self.invoke(*tail)),
            Op::Next => drop(self.next()),
            Op::Answer { right, attempt, error } => {
                let answer = if *error {
                    Answer::Failure { payload: Bytes::new(), kind: "Function.Error".into() }
                } else {
                    success()
                };
                let before = self.outcomes;
                let accepted = self.answer(*right, *attempt, answer).is_ok();
                assert!(!accepted || (*right && *attempt != Some(false)), "a stale id was accepted");
                assert!(accepted || self.outcomes == before, "a refused answer went out");
            }
            Op::InitError => {
                drop(self.machine.runtime_init_error(self.now, "Runtime.Unknown".into(), Bytes::new()));
                self.settle();
            }
            Op::Undelivered => {
                self.machine.undelivered();
                self.settle();
            }
            Op::Register { name, shutdown } => drop(self.register(&format!("e{name}"), *shutdown)),
            Op::ExtensionNext(index) => {
                if !self.extensions.is_empty() {
                    let id = *index.get(&self.extensions);
                    drop(self.machine.extension_next(self.now, id));
                    self.settle();
                }
            }
            Op::ExtensionError(index, init) => {
                if !self.extensions.is_empty() {
                    let id = *index.get(&self.extensions);
                    drop(self.machine.extension_error(self.now, id, *init, "x".into()));
                    self.settle();
                }
            }
            Op::Started => self.started(None),
            Op::StartFails { host } => {
                let error = if *host { StartError::Host("x".into()) } else { StartError::Exec("x".into()) };
                self.started(Some(error));
            }
            Op::Exit { runtime, oom } => self.exit(*runtime, *oom),
            Op::Killed { done } => self.killed(*done),
            Op::Pass(millis) => self.pass(Duration::from_millis(*millis)),
            Op::Shutdown => {
                self.machine.shutdown(self.now, RetireReason::Spindown);
                self.settle();
            }
            Op::RestoreNext => drop(self.restore_next()),
            Op::HangUp => self.waits = false,
            Op::Restored => self.restored(),
            Op::RestoreError => {
                drop(self.machine.runtime_restore_error(self.now, "Runtime.AfterRestoreError".into(), Bytes::new()));
                self.settle();
            }
            Op::Gone => {
                self.machine.gone(self.now);
                self.settle();
            }
        }
    }

    /// With a driver that does its duty and time that passes, everything comes to an end.
    fn run_out(&mut self) {
        for _ in 0..20 {
            while !self.starts.is_empty() {
                self.started(None);
            }
            while !self.kills.is_empty() {
                self.killed(true);
            }
            self.pass(Duration::from_secs(20));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_invocation_gets_one_outcome(extensions in 0usize..3, ops in prop::collection::vec(op(), 0..80)) {
        let mut driver = Driver::new(extensions);
        driver.machine.start(driver.now);
        driver.settle();
        for op in &ops {
            driver.apply(op);
        }
        driver.run_out();
        prop_assert_eq!(driver.init_done, 1);
        prop_assert_eq!(driver.outcomes + driver.aborted, driver.accepted);
        if driver.deaths == 0 {
            prop_assert_eq!(driver.aborted, 0);
            prop_assert_eq!(driver.idles, driver.accepted, "the slot is usable again after each");
            prop_assert_eq!(driver.answered, driver.accepted);
            prop_assert_eq!(driver.invoke(false), Ok(()), "an idle slot takes an invocation");
        } else {
            prop_assert!(driver.destroyed);
        }
        let starts = driver.lines.iter().filter(|l| matches!(l, Line::Start(_))).count();
        let ends = driver.lines.iter().filter(|l| matches!(l, Line::End(_))).count();
        prop_assert!(ends <= starts);
        driver.machine.shutdown(driver.now, RetireReason::Spindown);
        driver.settle();
        driver.run_out();
        prop_assert!(driver.destroyed);
        prop_assert_eq!(driver.outcomes + driver.aborted, driver.accepted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// What is kept is either restored, and then as any other sandbox, or it dies: never anything between.
    #[test]
    fn a_sandbox_of_a_snapshot(
        extensions in 0usize..3,
        before in prop::collection::vec(op(), 0..40),
        elsewhere in any::<bool>(),
        after in prop::collection::vec(op(), 0..40),
    ) {
        let mut driver = Driver::for_snapshot(extensions);
        for op in &before {
            driver.apply(op);
        }
        if elsewhere && driver.machine.held().is_some() {
            driver = driver.elsewhere();
            driver.restored();
        }
        for op in &after {
            driver.apply(op);
        }
        driver.run_out();
        prop_assert_eq!(driver.init_done, 1);
        prop_assert!(driver.restores <= 1 && driver.released <= driver.restores);
        prop_assert_eq!(driver.restore_done, driver.restores);
        prop_assert_eq!(driver.outcomes + driver.aborted, driver.accepted);
        let failed = driver.init_failed || driver.restore_failed;
        prop_assert!(!failed || driver.destroyed, "what failed is of no use");
        let state = driver.machine.state();
        prop_assert!(matches!(state, "held" | "frozen" | "dead"), "never without processes: {}", state);
        prop_assert_eq!(state == "dead", driver.destroyed);
        if state == "frozen" {
            prop_assert_eq!(driver.invoke(false), Ok(()));
        } else {
            prop_assert!(driver.invoke(false).is_err());
        }
    }
}
