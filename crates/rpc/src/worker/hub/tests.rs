use std::sync::Arc;

use domain::{FunctionArn, FunctionVersion, SlotPhase};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::convert::tests::version;

fn id(n: u128) -> SandboxId {
    SandboxId(Uuid::from_u128(n))
}

fn of(name: &str) -> Arc<FunctionVersion> {
    let version = version();
    let arn = FunctionArn { name: name.into(), ..version.arn.clone() };
    Arc::new(FunctionVersion { name: name.into(), arn, ..version })
}

fn arn(name: &str) -> Arc<str> {
    of(name).arn.text().into()
}

fn state(n: u128, name: &str) -> SandboxState {
    SandboxState { sandbox: id(n), version: of(name), phase: SlotPhase::Idle }
}

fn claim(manager: &str, epoch: u64, managers: &[&str]) -> Arc<Claim> {
    Arc::new(Claim { manager: manager.into(), epoch, managers: managers.iter().map(|m| Arc::from(*m)).collect() })
}

fn queue() -> (mpsc::Sender<Event>, mpsc::Receiver<Event>) {
    mpsc::channel(4)
}

/// A function's name that `manager` owns among a and b.
fn owned_by(manager: &str) -> String {
    let mut names = (0..).map(|i| format!("f{i}"));
    names.find(|name| claim(manager, 1, &["a", "b"]).covers(&arn(name))).unwrap()
}

fn told(events: &mut mpsc::Receiver<Event>) -> Vec<String> {
    std::iter::from_fn(|| events.try_recv().ok())
        .map(|event| match event {
            Event::Answered(s) => format!("answered {}", s.0.as_u128()),
            Event::Idle(s) => format!("idle {}", s.0.as_u128()),
            Event::Dead(s, _) => format!("dead {}", s.0.as_u128()),
            Event::Adopted(state) => format!("adopted {}", state.sandbox.0.as_u128()),
        })
        .collect()
}

#[test]
fn a_takeover_refuses_older_leases() {
    let mut hub = Hub::default();
    let f = owned_by("a");
    assert!(hub.init(id(1), &of(&f), 3));
    hub.made(&state(1, &f), Some("a"));
    assert!(hub.admits(id(1), 3) && !hub.admits(id(1), 2));
    let (sender, mut events) = queue();
    // b is alone in its view: everything is its own.
    let number = hub.claim(&claim("b", 5, &["b"]), &[state(1, &f)], sender).unwrap();
    assert!(hub.is_covered(number, id(1)));
    assert!(!hub.admits(id(1), 4) && hub.admits(id(1), 5));
    assert!(!hub.init(id(2), &of(&f), 4), "the function has a newer manager");
    assert!(hub.init(id(2), &of(&f), 5));
    // An old manager's claim changes nothing.
    let (late, _events) = queue();
    hub.claim(&claim("a", 4, &["a", "b"]), &[state(1, &f)], late).unwrap();
    assert!(!hub.admits(id(1), 4));
    assert_eq!(hub.claim(&claim("b", 4, &["b"]), &[], queue().0), Err(5), "overtaken by its own newer claim");
    hub.happened(&Event::Dead(id(1), RetireReason::Spindown));
    hub.not_made(id(2), Some("b"));
    assert_eq!((hub.fences(), told(&mut events)), (0, vec!["dead 1".to_owned()]));
}

#[test]
fn each_manager_hears_of_its_own() {
    let mut hub = Hub::default();
    let (fa, fb) = (owned_by("a"), owned_by("b"));
    let there = [state(1, &fa), state(2, &fb)];
    let ((to_a, mut a), (to_b, mut b)) = (queue(), queue());
    hub.claim(&claim("a", 1, &["a", "b"]), &there, to_a).unwrap();
    hub.claim(&claim("b", 1, &["a", "b"]), &there, to_b).unwrap();
    hub.happened(&Event::Answered(id(1)));
    hub.happened(&Event::Idle(id(1)));
    hub.happened(&Event::Idle(id(2)));
    assert_eq!(
        (told(&mut a), told(&mut b)),
        (vec!["answered 1".into(), "idle 1".to_owned()], vec!["idle 2".to_owned()])
    );
    // New ones, from the moment their Init begins; who waits for the answer is not told of it twice.
    assert!(hub.init(id(3), &of(&fa), 1) && hub.init(id(4), &of(&fa), 1) && hub.init(id(5), &of(&fa), 1));
    hub.made(&state(3, &fa), Some("a"));
    hub.made(&state(4, &fa), None);
    hub.not_made(id(5), None);
    hub.happened(&Event::Idle(id(3)));
    assert_eq!((told(&mut a), told(&mut b)), (vec!["adopted 4".into(), "dead 5".into(), "idle 3".into()], vec![]));
}

#[test]
fn an_init_that_outlives_its_manager_is_adopted() {
    let mut hub = Hub::default();
    let f = owned_by("a");
    assert!(hub.init(id(1), &of(&f), 1));
    let (sender, mut b) = queue();
    hub.claim(&claim("b", 2, &["b"]), &[], sender).unwrap();
    assert!(!hub.admits(id(1), 1), "fenced while it starts");
    // What was there a moment before the claim and is not any more; the one that starts is not there yet.
    hub.reconcile(&[state(1, &f)], &[]);
    hub.made(&state(1, &f), Some("a"));
    assert_eq!(told(&mut b), ["adopted 1"]);
}

#[test]
fn a_stream_that_lags_behind_ends_and_others_go_on() {
    let mut hub = Hub::default();
    let f = owned_by("a");
    let ((to_a, mut a), (to_b, mut b)) = (queue(), queue());
    hub.claim(&claim("a", 1, &["a"]), &[state(1, &f)], to_a).unwrap();
    hub.claim(&claim("b", 1, &["b"]), &[state(1, &f)], to_b).unwrap();
    for _ in 0..5 {
        hub.happened(&Event::Idle(id(1)));
        told(&mut b);
    }
    hub.happened(&Event::Dead(id(1), RetireReason::Failure));
    assert_eq!(told(&mut a).len(), 4, "as many as there is room for, and then the end");
    assert!(matches!(a.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
    assert_eq!(told(&mut b), ["dead 1"]);
    // A new stream takes the place of the one before.
    let ((one, mut first), (two, _second)) = (queue(), queue());
    hub.claim(&claim("c", 1, &["c"]), &[], one).unwrap();
    hub.claim(&claim("c", 1, &["c"]), &[], two).unwrap();
    assert!(matches!(first.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
}

#[test]
fn what_died_during_a_claim_is_forgotten() {
    let mut hub = Hub::default();
    let f = owned_by("a");
    let there = [state(1, &f), state(2, &f)];
    hub.claim(&claim("a", 1, &["a"]), &there, queue().0).unwrap();
    hub.reconcile(&there, &there[1..]);
    assert_eq!(hub.fences(), 1);
}

#[derive(Clone, Debug)]
enum Do {
    Claim { manager: usize, epoch: u64, views: u8 },
    Init { sandbox: u128, function: usize, epoch: u64 },
    Die(u128),
}

proptest! {
    /// Whatever happens: a sandbox's fence never goes down, and is at least every claim's that covered it.
    #[test]
    fn fences_only_rise(steps in prop::collection::vec(any_step(), 1..60)) {
        let managers = ["m0", "m1", "m2"];
        let mut hub = Hub::default();
        let mut fences: HashMap<SandboxId, (usize, u64)> = HashMap::new();
        for step in steps {
            match step {
                Do::Claim { manager, epoch, views } => {
                    let live: Vec<&str> = (0..3).filter(|i| *i == manager || views >> i & 1 == 1).map(|i| managers[i]).collect();
                    let claim = claim(managers[manager], epoch, &live);
                    let there: Vec<_> = fences.iter().map(|(s, (f, _))| state(s.0.as_u128(), &format!("f{f}"))).collect();
                    if hub.claim(&claim, &there, queue().0).is_ok() {
                        for (function, fence) in fences.values_mut() {
                            if claim.covers(&arn(&format!("f{function}"))) {
                                *fence = epoch.max(*fence);
                            }
                        }
                    }
                }
                Do::Init { sandbox, function, epoch } => {
                    let f = format!("f{function}");
                    if !fences.contains_key(&id(sandbox)) && hub.init(id(sandbox), &of(&f), epoch) {
                        fences.insert(id(sandbox), (function, epoch));
                        hub.made(&state(sandbox, &f), None);
                    }
                }
                Do::Die(sandbox) => {
                    hub.happened(&Event::Dead(id(sandbox), RetireReason::Spindown));
                    fences.remove(&id(sandbox));
                }
            }
            prop_assert_eq!(hub.fences(), fences.len());
            for (sandbox, (_, fence)) in &fences {
                prop_assert!(hub.admits(*sandbox, *fence));
                prop_assert!(*fence == 0 || !hub.admits(*sandbox, fence - 1));
            }
        }
    }
}

fn any_step() -> impl Strategy<Value = Do> {
    prop_oneof![
        (0usize..3, 0u64..6, any::<u8>()).prop_map(|(manager, epoch, views)| Do::Claim { manager, epoch, views }),
        (0u128..6, 0usize..4, 0u64..6).prop_map(|(sandbox, function, epoch)| Do::Init { sandbox, function, epoch }),
        (0u128..6).prop_map(Do::Die),
    ]
}
