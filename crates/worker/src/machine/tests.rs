//! What a sandbox goes through, step by step; in any order: `any_order`.

use super::*;
use driver::*;

mod any_order;
mod driver;
mod restore;

#[test]
fn a_warm_invocation_in_order() {
    let mut d = Driver::ready();
    d.pass(Duration::from_millis(20));
    assert!(d.frozen);
    d.invoke(false).unwrap();
    assert_eq!((d.handed, d.frozen), (1, false));
    assert_eq!(d.invoke(false), Err(Refused::Busy));
    d.answer(true, Some(true), success()).unwrap();
    assert_eq!((d.outcomes, d.answered, d.idles), (1, 1, 0));
    assert_eq!(
        d.answer(true, None, success()),
        Err(ApiError::Transition { from: "RuntimeResponseSentState", to: "InvocationResponse" })
    );
    d.next().unwrap();
    assert_eq!(d.idles, 1);
    assert_eq!(d.answer(true, None, success()), Err(ApiError::InvalidRequestId), "over");
}

#[test]
fn init_that_takes_too_long_is_tried_again_by_the_first_invocation() {
    let mut d = Driver::new(0);
    d.machine.start(d.now);
    d.settle();
    d.started(None);
    d.pass(Duration::from_secs(10));
    assert_eq!(d.init_done, 1);
    d.killed(true);
    assert_eq!(d.machine.state(), "down");
    d.invoke(false).unwrap();
    assert_eq!(d.machine.state(), "init");
    d.started(None);
    d.next().unwrap();
    assert_eq!(d.handed, 1);
    d.answer(true, None, success()).unwrap();
    d.next().unwrap();
    assert_eq!((d.outcomes, d.idles), (1, 1));
}

#[test]
fn a_suppressed_init_is_under_the_functions_timeout() {
    let mut d = Driver::new(0);
    d.invoke(false).unwrap();
    d.started(None);
    d.pass(TIMEOUT);
    assert_eq!(d.outcomes, 1);
    d.killed(true);
    assert_eq!(d.idles, 1);
}

#[test]
fn a_crash_while_idle_is_hidden_by_a_fresh_start() {
    let mut d = Driver::ready();
    d.exit(true, false);
    assert_eq!(d.machine.state(), "stopping");
    d.invoke(false).unwrap();
    d.killed(true);
    d.started(None);
    d.next().unwrap();
    d.answer(true, None, success()).unwrap();
    d.next().unwrap();
    assert_eq!((d.accepted, d.outcomes, d.idles), (1, 1, 1));
    let starts = d.lines.iter().filter(|l| matches!(l, Line::Start(_))).count();
    assert_eq!(starts, 1);
}

#[test]
fn an_invocations_time_does_not_run_while_the_slot_recovers() {
    let mut d = Driver::ready();
    d.exit(true, false);
    d.invoke(false).unwrap();
    d.pass(TIMEOUT * 2);
    assert_eq!(d.outcomes, 0);
    d.killed(true);
    d.started(None);
    d.pass(TIMEOUT / 2);
    d.next().unwrap();
    d.answer(true, None, success()).unwrap();
    assert_eq!((d.outcomes, d.aborted), (1, 0));
}

#[test]
fn extensions_have_their_phases() {
    let mut d = Driver::new(1);
    d.machine.start(d.now);
    d.settle();
    assert_eq!(d.starts.len(), 1, "the runtime waits for the extension's registration");
    d.started(None);
    let external = d.register("e0", true).unwrap();
    d.started(None);
    let internal = d.register("internal", false).unwrap();
    assert!(matches!(d.register("late", true), Err(ApiError::Extension { kind: "Extension.InvalidEventType", .. })));
    d.next().unwrap();
    d.machine.extension_next(d.now, external).unwrap();
    d.settle();
    assert_eq!(d.init_done, 0, "one extension is not ready");
    d.machine.extension_next(d.now, internal).unwrap();
    d.settle();
    assert_eq!(d.init_done, 1);
    assert!(matches!(d.register("late", false), Err(ApiError::Extension { kind: "Extension.RegistrationClosed", .. })));
    d.invoke(false).unwrap();
    d.answer(true, None, success()).unwrap();
    d.next().unwrap();
    d.machine.extension_next(d.now, internal).unwrap();
    d.settle();
    assert_eq!((d.outcomes, d.idles), (1, 0), "answered, but an extension still works");
    d.pass(TIMEOUT);
    assert_eq!(d.machine.state(), "stopping");
    d.pass(Duration::from_millis(600));
    assert_eq!(d.shutdown_events, [RetireReason::Timeout], "after the runtime's share of the budget");
    d.exit(false, false);
    d.killed(true);
    assert_eq!((d.machine.state(), d.idles), ("down", 1));
}

#[test]
fn no_more_than_ten_extensions() {
    let mut d = Driver::new(0);
    d.machine.start(d.now);
    d.settle();
    for n in 0..MAX_EXTENSIONS {
        d.register(&format!("i{n}"), false).unwrap();
    }
    assert!(matches!(
        d.register("one more", false),
        Err(ApiError::Extension { kind: "Extension.TooManyExtensions", .. })
    ));
}
