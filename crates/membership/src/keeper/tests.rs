use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{Member, MemberId, Role};

const TTL: Duration = Duration::from_secs(2);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn keeper() -> Keeper {
    Keeper::new(MemberId::new("me"), MemberState::Active, TTL)
}

fn view(epoch: u64, own: u64, state: MemberState) -> View {
    let me = Member {
        id: MemberId::new("me"),
        roles: [Role::Worker].into(),
        address: "me:1".into(),
        version: "1".into(),
        state,
        epoch: own,
        labels: BTreeMap::new(),
    };
    View::new(epoch, vec![me])
}

fn held(joined: u64, epoch: u64) -> Event {
    Event::Told(Hold::Held { joined, epoch })
}

/// A keeper that has joined at 0 ms with epoch 5, and has read that.
fn joined() -> Keeper {
    let mut keeper = keeper();
    assert_eq!(keeper.step(ms(0), Event::Time), [Action::Call(Call::Join(MemberState::Active))]);
    let actions = keeper.step(ms(10), Event::Joined(5));
    assert_eq!(actions, [Action::Stand(Standing::In { epoch: 5 }), Action::Call(Call::Read)]);
    let first = view(5, 5, MemberState::Active);
    assert_eq!(keeper.step(ms(20), Event::Read(first.clone())), [Action::Publish(first)]);
    keeper
}

#[test]
fn beats_every_quarter_of_the_time_to_live() {
    let mut keeper = joined();
    for beat in 1..10 {
        let at = ms(beat * 500);
        assert_eq!(keeper.due(), Some(at));
        assert_eq!(keeper.step(at, Event::Time), [Action::Call(Call::Beat)]);
        // From when the call began: the registry had it no earlier.
        assert_eq!(keeper.step(at + ms(70), held(5, 5)), []);
    }
}

#[test]
fn reads_the_view_as_soon_as_it_hears_of_a_newer_one() {
    let mut keeper = joined();
    assert_eq!(keeper.step(ms(200), Event::Heard(6)), [Action::Call(Call::Read)]);
    // Older or the same: nothing to publish.
    assert_eq!(keeper.step(ms(210), Event::Read(view(5, 5, MemberState::Active))), []);
    // The registry has lost 6: this is not asked for again and again.
    assert_eq!(keeper.due(), Some(ms(500)));
    assert_eq!(keeper.step(ms(400), Event::Heard(7)), [Action::Call(Call::Read)]);
    let seventh = view(7, 5, MemberState::Active);
    assert_eq!(keeper.step(ms(410), Event::Read(seventh.clone())), [Action::Publish(seventh)]);
    // A beat tells as well.
    assert_eq!(keeper.step(ms(500), Event::Time), [Action::Call(Call::Beat)]);
    assert_eq!(keeper.step(ms(600), held(5, 8)), [Action::Call(Call::Read)]);
    assert_eq!(keeper.step(ms(610), Event::Read(view(8, 5, MemberState::Active))).len(), 1);
    // Those that come thick and fast are taken together.
    assert_eq!(keeper.step(ms(620), Event::Heard(9)), []);
    assert_eq!(keeper.step(ms(630), Event::Heard(10)), []);
    assert_eq!(keeper.due(), Some(ms(735)));
    assert_eq!(keeper.step(ms(735), Event::Time), [Action::Call(Call::Read)]);
}

#[test]
fn an_outage_changes_nothing() {
    let mut keeper = joined();
    let mut now = ms(500);
    for _ in 0..1000 {
        assert_eq!(keeper.step(now, Event::Time), [Action::Call(Call::Beat)]);
        // Refused at once: again after an eighth.
        assert_eq!(keeper.step(now + ms(1), Event::Failed), []);
        assert_eq!(keeper.due(), Some(now + ms(250)));
        now += ms(250);
        // Not answered: again at once.
        assert_eq!(keeper.step(now, Event::Time), [Action::Call(Call::Beat)]);
        now += keeper.limit(Call::Beat);
        assert_eq!(keeper.step(now, Event::Failed), [Action::Call(Call::Beat)]);
        now += ms(1);
        assert_eq!(keeper.step(now, Event::Failed), []);
        now = keeper.due().unwrap();
    }
    assert_eq!(keeper.standing(), Standing::In { epoch: 5 });
}

#[test]
fn who_was_found_dead_joins_again() {
    let mut keeper = joined();
    keeper.step(ms(500), Event::Time);
    let actions = keeper.step(ms(510), Event::Told(Hold::Expired));
    assert_eq!(actions, [Action::Stand(Standing::Out), Action::Call(Call::Join(MemberState::Active))]);
    keeper.step(ms(520), Event::Failed);
    assert_eq!(keeper.step(ms(760), Event::Time), [Action::Call(Call::Join(MemberState::Active))]);
    let actions = keeper.step(ms(770), Event::Joined(9));
    assert_eq!(actions, [Action::Stand(Standing::In { epoch: 9 }), Action::Call(Call::Read)]);
}

#[test]
fn who_was_replaced_does_nothing_more() {
    let mut keeper = joined();
    keeper.step(ms(500), Event::Time);
    assert_eq!(keeper.step(ms(510), Event::Told(Hold::Replaced)), [Action::Stand(Standing::Replaced)]);
    assert_eq!(keeper.due(), None);
    for event in [Event::Time, Event::Heard(99), Event::Want(MemberState::Draining), Event::Leave] {
        assert_eq!(keeper.step(ms(9000), event), []);
    }
}

#[test]
fn drains_until_the_registry_has_it_and_leaves() {
    let mut keeper = joined();
    let drain = Call::SetState(MemberState::Draining);
    assert_eq!(keeper.step(ms(100), Event::Want(MemberState::Draining)), [Action::Call(drain)]);
    assert_eq!(keeper.step(ms(110), Event::Failed), []);
    assert_eq!(keeper.step(ms(350), Event::Time), [Action::Call(drain)]);
    assert_eq!(keeper.step(ms(360), held(5, 6)), [Action::Call(Call::Read)]);
    keeper.step(ms(370), Event::Read(view(6, 5, MemberState::Draining)));
    assert_eq!(keeper.due(), Some(ms(850)));
    // A call that was given up was done late.
    keeper.step(ms(600), Event::Heard(7));
    let actions = keeper.step(ms(610), Event::Read(view(7, 5, MemberState::Active)));
    assert_eq!(actions[1..], [Action::Call(drain)]);
    assert_eq!(keeper.step(ms(620), Event::Leave), []);
    assert_eq!(keeper.step(ms(630), held(5, 8)), [Action::Call(Call::Leave)]);
    // One try: others will find it dead.
    assert_eq!(keeper.step(ms(640), Event::Failed), [Action::Stand(Standing::Left)]);
    assert_eq!(keeper.due(), None);
}

/// What a registry and a process might do to a keeper, in any order.
#[derive(Clone, Debug)]
enum Input {
    /// The call in flight is answered: by success, `Expired`, `Replaced` or failure.
    Answer(u8, u64),
    Heard(u64),
    Want(MemberState),
    Leave,
    Wait(u64),
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let input = prop_oneof![
        8 => (0u8..20, 0u64..50).prop_map(|(how, epoch)| Input::Answer(how, epoch)),
        2 => (0u64..50).prop_map(Input::Heard),
        1 => prop_oneof![Just(MemberState::Active), Just(MemberState::Draining)].prop_map(Input::Want),
        1 => prop::bool::weighted(0.1).prop_filter_map("rarely", |leave| leave.then_some(Input::Leave)),
        4 => (0u64..700).prop_map(Input::Wait),
    ];
    prop::collection::vec(input, 0..120)
}

proptest! {
    #[test]
    fn keeps_its_rules_whatever_happens(inputs in inputs()) {
        let mut keeper = keeper();
        let (mut now, mut in_flight, mut published) = (Duration::ZERO, None, 0);
        let mut wanted = MemberState::Active;
        let mut over = false;
        let mut asked = Duration::ZERO;
        for input in inputs {
            let event = match input {
                Input::Wait(span) => {
                    now += ms(span);
                    Event::Time
                }
                Input::Heard(epoch) => Event::Heard(epoch),
                Input::Want(state) => {
                    wanted = state;
                    Event::Want(state)
                }
                Input::Leave => Event::Leave,
                Input::Answer(how, epoch) => match in_flight.take() {
                    None => Event::Time,
                    Some(_) if how < 4 => Event::Failed,
                    Some(Call::Beat | Call::SetState(_)) if how == 4 => Event::Told(Hold::Expired),
                    Some(Call::Beat | Call::SetState(_)) if how == 5 => Event::Told(Hold::Replaced),
                    Some(Call::Beat | Call::SetState(_)) => held(epoch, epoch),
                    Some(Call::Join(_)) => Event::Joined(epoch),
                    Some(Call::Read) => Event::Read(view(epoch, epoch, wanted)),
                    Some(Call::Leave) => Event::Gone,
                },
            };
            let before = keeper.standing();
            let quiet = matches!(event, Event::Failed | Event::Time | Event::Heard(_) | Event::Want(_));
            for action in keeper.step(now, event) {
                prop_assert!(!over, "{action:?} after the end");
                match action {
                    Action::Call(call) => {
                        prop_assert_eq!(in_flight.replace(call), None, "two calls at once");
                        if let Call::Join(state) | Call::SetState(state) = call {
                            prop_assert_eq!(state, wanted);
                        }
                        asked = now;
                    }
                    Action::Publish(view) => {
                        prop_assert!(view.epoch() > published);
                        published = view.epoch();
                    }
                    Action::Stand(standing) => {
                        prop_assert!(standing != before && standing == keeper.standing());
                        // Nothing that fails takes anybody out; only who leaves is out by its own doing.
                        prop_assert!(!quiet || standing == Standing::Left);
                    }
                }
            }
            over = keeper.standing().is_over();
            match (over, in_flight) {
                (true, _) | (_, Some(_)) => prop_assert_eq!(keeper.due(), None),
                // Never longer than a quarter of the time to live without asking the registry.
                (false, None) => prop_assert!(keeper.due().is_some_and(|due| due <= asked + TTL / 4)),
            }
        }
    }
}
