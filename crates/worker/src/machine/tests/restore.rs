//! SnapStart, step by step.

use bytes::Bytes;

use super::super::*;
use super::driver::*;

#[test]
fn a_restore_in_order() {
    for elsewhere in [false, true] {
        let mut d = Driver::held();
        assert!(matches!(&d.lines[..], [Line::InitStart, Line::Initialized(_)]));
        assert_eq!(d.machine.deadline(), None, "it may be held for ever");
        assert_eq!(d.invoke(false), Err(Refused::Busy));
        if elsewhere {
            d = d.elsewhere();
        }
        d.restored();
        if elsewhere {
            assert_eq!((d.released, d.machine.state()), (0, "init"), "its connection is gone");
            assert_eq!(d.next(), Err(ApiError::Transition { from: "RestoreReady", to: "Ready" }));
            d.restore_next().unwrap();
        }
        assert_eq!(d.released, 1);
        assert_eq!(d.restore_next(), Err(ApiError::Transition { from: "Restoring", to: "RestoreReady" }));
        d.pass(Duration::from_millis(7));
        d.next().unwrap();
        assert_eq!((d.restore_done, d.restore_failed, d.machine.state()), (1, false, "idle"));
        d.invoke(false).unwrap();
        d.answer(true, None, success()).unwrap();
        d.next().unwrap();
        let Some(Line::End(report)) = d.lines.last() else { panic!("no END: {:?}", d.lines) };
        let (duration, billed) = (Duration::from_millis(12), Duration::from_millis(7));
        assert_eq!((report.init, report.restored), (None, Some(Restored { duration, billed })));
        d.invoke(false).unwrap();
        d.answer(true, None, success()).unwrap();
        d.next().unwrap();
        assert!(matches!(d.lines.last(), Some(Line::End(Report { restored: None, .. }))), "once");
    }
}

#[test]
fn a_runtime_without_hooks_is_kept_where_it_asks_for_an_invocation() {
    let mut d = Driver::for_snapshot(0);
    d.started(None);
    d.next().unwrap();
    assert_eq!(d.machine.state(), "held");
    let mut d = d.elsewhere();
    d.restored();
    assert_eq!((d.restore_done, d.machine.state()), (1, "idle"));
    d.next().unwrap();
    d.invoke(false).unwrap();
    assert_eq!(d.handed, 1);
}

#[test]
fn without_a_snapshot_there_is_no_restore() {
    let mut d = Driver::new(0);
    d.machine.start(d.now);
    d.settle();
    d.started(None);
    assert_eq!(d.restore_next(), Err(ApiError::Transition { from: "Started", to: "RestoreReady" }));
    d.next().unwrap();
    d.restored();
    assert_eq!((d.restores, d.machine.state()), (0, "idle"));
}

#[test]
fn a_restore_has_a_limit_and_may_fail() {
    let mut late = Driver::held();
    late.restored();
    late.pass(Duration::from_secs(10));
    let mut failed = Driver::held();
    failed.restored();
    let report = failed.machine.runtime_restore_error(failed.now, "Runtime.AfterRestoreError".into(), Bytes::new());
    report.unwrap();
    failed.settle();
    let mut ended = Driver::held();
    ended.restored();
    ended.exit(true, false);
    for (mut d, kind) in
        [(late, "Sandbox.Timedout"), (failed, "Runtime.AfterRestoreError"), (ended, "Runtime.ExitError")]
    {
        assert!(d.restore_failed && d.restore_done == 1);
        let Some(Line::RestoreReport { fault: Some(fault), .. }) = d.lines.last() else { panic!("{:?}", d.lines) };
        assert_eq!(fault.error_type(), kind);
        d.killed(true);
        assert!(d.destroyed);
    }
}
