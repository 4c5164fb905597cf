//! One account's unreserved concurrency, counted by several managers.
//!
//! ```text
//!  holder (each manager)                                   home (one manager for each account)
//!   in use ≤ hold ──Ask { hold, want }────────────────────► what every holder may use: their sum ≤ limit
//!          ◄──────────────────────Grant { hold ≤ grant }───
//! ```
//!
//! A holder lets requests run only within its grant, and asks before that is used up; what it does not use it gives up by the
//! same question, as it lowers its own `hold` before it asks. So the home's books are never below what holders take for theirs, whatever is
//! lost or late on the way: an answer counts only for the question that it answers, a holder has one question at a time, and each has
//! a number, so that one that was given up and arrives after a later one changes nothing.
//!
//! The home is found by rendezvous hashing in each view of the fleet. With each view every manager first tells every home what it holds
//! ([`Home::hello`]), and asks only then. Where the managers are others than before, a home grants nothing beyond what holders have until
//! it has heard of all of them, or [`LEARNING`] is over. What a dead manager had running is counted by those that take its functions
//! over, even beyond their grants.
//!
//! All of this is values: [`Home`], and [`plan`] for a holder. `manager/quota.rs` drives them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use domain::AccountId;
use domain::quota::{Ask, Grant};

/// How long a new home waits for managers that do not ask.
pub const LEARNING: Duration = Duration::from_secs(1);
/// The most that a holder has beyond what it uses.
const SLACK: u32 = 64;

/// How much a holder has beyond what it uses: of a small limit, nothing may lie about.
pub fn slack(limit: u32) -> u32 {
    (limit / 16).min(SLACK)
}

/// What a holder with this much in use, `waiting` requests that its grant does not let run, and this grant should ask for:
/// `(hold, want)`.
pub fn plan(in_use: u32, waiting: u32, grant: u32, limit: u32, scarce: bool) -> (u32, u32) {
    let slack = if scarce || in_use == 0 { 0 } else { slack(limit) };
    let hold = grant.min(in_use.saturating_add(slack)).max(in_use);
    let want = in_use.saturating_add(waiting).saturating_add(slack).min(limit).max(hold);
    (hold, want)
}

/// The books of the accounts whose home a manager is.
#[derive(Debug, Default)]
pub struct Home {
    epoch: u64,
    since: Duration,
    managers: BTreeSet<Arc<str>>,
    /// Which of them have not said yet what they hold.
    silent: BTreeSet<Arc<str>>,
    /// The number of each one's last word in this view.
    heard: HashMap<Arc<str>, u64>,
    accounts: HashMap<AccountId, Account>,
}

#[derive(Debug, Default)]
struct Account {
    holds: HashMap<Arc<str>, u32>,
    /// Until when grants are small, since there was too little.
    scarce_until: Duration,
}

/// How long holders stay frugal after somebody wanted more than there was.
const SCARCE: Duration = Duration::from_secs(1);

impl Home {
    /// A new view.
    pub fn view(&mut self, now: Duration, epoch: u64, managers: impl IntoIterator<Item = Arc<str>>) {
        if epoch <= self.epoch {
            return;
        }
        let managers: BTreeSet<_> = managers.into_iter().collect();
        self.epoch = epoch;
        // A manager that came again counts from the beginning. What it said in an earlier view is refused for that.
        self.heard.clear();
        if managers != self.managers {
            *self = Self { epoch, since: now, silent: managers.clone(), managers, ..Self::default() };
        }
    }

    /// Whether something that `from` says is of this view, and not older than what it has said since.
    fn listens(&mut self, from: &Arc<str>, epoch: u64, number: u64) -> bool {
        if epoch != self.epoch || !self.managers.contains(from) {
            return false;
        }
        let last = self.heard.entry(Arc::clone(from)).or_default();
        if number != 0 && number <= *last {
            return false;
        }
        *last = number.max(*last);
        true
    }

    /// What a manager holds of accounts whose home this is, all of it; `false` if it has another view, or has said something since.
    pub fn hello(&mut self, from: &Arc<str>, epoch: u64, number: u64, holds: &[(AccountId, u32)]) -> bool {
        if !self.listens(from, epoch, number) {
            return false;
        }
        self.accounts.values_mut().for_each(|account| _ = account.holds.remove(from));
        for (account, hold) in holds {
            self.accounts.entry(account.clone()).or_default().holds.insert(Arc::clone(from), *hold);
        }
        self.silent.remove(from);
        true
    }

    /// Answers a holder; `None` if it has another view or has asked again since, or if what it could have is not known yet.
    pub fn answer(&mut self, now: Duration, from: &Arc<str>, ask: &Ask) -> Option<Grant> {
        if !self.listens(from, ask.epoch, ask.number) {
            return None;
        }
        let complete = self.silent.is_empty() || now.saturating_sub(self.since) >= LEARNING;
        let account = self.accounts.entry(ask.account.clone()).or_default();
        let others = account.holds.iter().filter(|(id, _)| *id != from);
        let others = others.fold(0u32, |sum, (_, hold)| sum.saturating_add(*hold));
        let room = if complete { ask.limit.saturating_sub(others) } else { 0 };
        let grant = ask.want.min(room).max(ask.hold);
        account.holds.insert(Arc::clone(from), grant);
        if grant < ask.want && !complete {
            return None;
        }
        // Also where a limit was lowered: everybody is to give up what it can.
        if grant < ask.want || others.saturating_add(grant) > ask.limit {
            account.scarce_until = now + SCARCE;
        }
        Some(Grant { grant, scarce: now < account.scarce_until })
    }

    #[cfg(test)]
    fn sum(&self, account: &AccountId) -> u32 {
        self.accounts.get(account).map_or(0, |account| account.holds.values().sum())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: u32 = 20;
    const HOLDERS: usize = 3;

    fn id(n: usize) -> Arc<str> {
        format!("m{n}").into()
    }

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[derive(Clone, Debug)]
    enum Op {
        /// A request comes, or ends, at a holder.
        Begin(usize),
        End(usize),
        /// A holder asks, if it has no question out.
        Ask(usize),
        /// The question arrives; its answer is on the way.
        Arrive(usize),
        /// The answer arrives.
        Answer(usize),
        /// The holder does not wait any longer: the answer is lost, or the question is late.
        Lose(usize),
        /// It says what it holds, and hears nothing: that is late as well.
        Greet(usize),
        /// The one at this place of what is late arrives after all. Nobody waits for its answer.
        Late(prop::sample::Index),
        Pass(u64),
        /// This one dies, and the next takes over what ran there.
        Die(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        let holder = 0..HOLDERS;
        prop_oneof![
            8 => holder.clone().prop_map(Op::Begin),
            5 => holder.clone().prop_map(Op::End),
            8 => holder.clone().prop_map(Op::Ask),
            8 => holder.clone().prop_map(Op::Arrive),
            8 => holder.clone().prop_map(Op::Answer),
            4 => holder.clone().prop_map(Op::Lose),
            1 => holder.clone().prop_map(Op::Greet),
            4 => any::<prop::sample::Index>().prop_map(Op::Late),
            2 => (0u64..1500).prop_map(Op::Pass),
            1 => holder.prop_map(Op::Die),
        ]
    }

    #[derive(Default)]
    struct Holder {
        dead: bool,
        in_use: u32,
        waiting: u32,
        grant: u32,
        scarce: bool,
        greeted: bool,
        out: Option<Ask>,
        back: Option<Grant>,
    }

    /// What a holder said and has given up.
    enum Word {
        Hello { epoch: u64, number: u64, hold: u32 },
        Ask(Ask),
    }

    struct World {
        now: Duration,
        epoch: u64,
        home: Home,
        /// Of the last word of any holder.
        number: u64,
        late: Vec<(usize, Word)>,
        holders: [Holder; HOLDERS],
        /// What was adopted beyond what its new holder had been granted.
        excess: u32,
    }

    impl World {
        fn new() -> Self {
            let mut world = Self {
                now: secs(10),
                epoch: 0,
                home: Home::default(),
                number: 0,
                late: Vec::new(),
                holders: Default::default(),
                excess: 0,
            };
            world.view();
            world
        }

        /// Whoever is home starts from nothing: the books of the one before are as good as lost.
        fn view(&mut self) {
            self.epoch += 1;
            let live = (0..HOLDERS).filter(|n| !self.holders[*n].dead).map(id);
            self.home.view(self.now, self.epoch, live);
            for holder in &mut self.holders {
                (holder.greeted, holder.out, holder.back) = (false, None, None);
            }
        }

        fn step(&mut self, op: &Op) {
            let (now, epoch) = (self.now, self.epoch);
            self.number += 1;
            let number = self.number;
            match *op {
                Op::Begin(n) => {
                    let holder = &mut self.holders[n];
                    if !holder.dead && holder.in_use < holder.grant {
                        holder.in_use += 1;
                    } else if !holder.dead {
                        holder.waiting += 1;
                    }
                }
                Op::End(n) => {
                    self.holders[n].in_use = self.holders[n].in_use.saturating_sub(1);
                    self.excess = self.excess.min(self.in_use().saturating_sub(LIMIT));
                }
                Op::Ask(n) => {
                    let holder = &mut self.holders[n];
                    if !holder.dead && !holder.greeted {
                        let holds = [(AccountId::local(), holder.grant)];
                        holder.greeted = self.home.hello(&id(n), epoch, number, &holds);
                    } else if !holder.dead && holder.out.is_none() && holder.back.is_none() {
                        let (hold, want) = plan(
                            holder.in_use,
                            std::mem::take(&mut holder.waiting),
                            holder.grant,
                            LIMIT,
                            holder.scarce,
                        );
                        holder.grant = hold;
                        holder.out = Some(Ask { epoch, number, account: AccountId::local(), limit: LIMIT, hold, want });
                    }
                }
                Op::Arrive(n) => {
                    if let Some(ask) = self.holders[n].out.take() {
                        self.holders[n].back = self.home.answer(now, &id(n), &ask);
                    }
                }
                Op::Answer(n) => {
                    if let Some(Grant { grant, scarce }) = self.holders[n].back.take() {
                        assert!(grant >= self.holders[n].grant, "what is in use stays");
                        (self.holders[n].grant, self.holders[n].scarce) = (grant, scarce);
                    }
                }
                Op::Lose(n) => {
                    self.holders[n].back = None;
                    self.late.extend(self.holders[n].out.take().map(|ask| (n, Word::Ask(ask))));
                }
                Op::Greet(n) => {
                    let holder = &self.holders[n];
                    // It says so before it asks, and only then.
                    if !holder.dead && !holder.greeted {
                        self.late.push((n, Word::Hello { epoch, number, hold: holder.grant }));
                    }
                }
                Op::Late(at) => {
                    if self.late.is_empty() {
                        return;
                    }
                    let (n, word) = self.late.swap_remove(at.index(self.late.len()));
                    match word {
                        Word::Hello { epoch, number, hold } => {
                            self.home.hello(&id(n), epoch, number, &[(AccountId::local(), hold)]);
                        }
                        Word::Ask(ask) => _ = self.home.answer(now, &id(n), &ask),
                    }
                }
                Op::Pass(ms) => self.now += Duration::from_millis(ms),
                Op::Die(n) => {
                    let others = self.holders.iter().filter(|holder| !holder.dead).count();
                    if self.holders[n].dead || others < 2 {
                        return;
                    }
                    let Holder { in_use, .. } =
                        std::mem::replace(&mut self.holders[n], Holder { dead: true, ..Holder::default() });
                    let heir = (0..HOLDERS).find(|m| !self.holders[*m].dead).unwrap();
                    let heir = &mut self.holders[heir];
                    heir.in_use += in_use;
                    heir.grant = heir.grant.max(heir.in_use);
                    self.view();
                    self.excess = self.holders.iter().map(|holder| holder.grant).sum::<u32>().saturating_sub(LIMIT);
                }
            }
            let granted: u32 = self.holders.iter().map(|holder| holder.grant).sum();
            assert!(self.in_use() <= granted);
            assert!(granted <= LIMIT + self.excess, "{granted} granted");
            if self.excess == 0 {
                assert!(self.in_use() <= LIMIT);
            }
        }

        fn in_use(&self) -> u32 {
            self.holders.iter().map(|holder| holder.in_use).sum()
        }

        fn exchange(&mut self, n: usize) {
            for op in [Op::Lose(n), Op::Ask(n), Op::Ask(n), Op::Arrive(n), Op::Answer(n)] {
                self.step(&op);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn the_limit_holds_and_nothing_is_lost(ops in prop::collection::vec(op(), 0..200)) {
            let mut world = World::new();
            for op in &ops {
                world.step(op);
            }
            // After quiet, one holder can have all of it, in a few exchanges of everybody.
            while world.in_use() > 0 {
                (0..HOLDERS).for_each(|n| world.step(&Op::End(n)));
            }
            let live: Vec<usize> = (0..HOLDERS).filter(|n| !world.holders[*n].dead).collect();
            for _ in 0..2 * LIMIT {
                world.step(&Op::Pass(1000));
                world.step(&Op::Begin(live[0]));
                live.iter().for_each(|n| world.exchange(*n));
            }
            assert_eq!(world.holders[live[0]].in_use, LIMIT);
            assert!(world.home.sum(&AccountId::local()) <= LIMIT);
        }
    }

    #[test]
    fn a_question_that_comes_after_a_later_one_changes_nothing() {
        let mut home = Home::default();
        home.view(secs(0), 1, [id(0), id(1)]);
        let ask = |number, hold, want| Ask { epoch: 1, number, account: AccountId::local(), limit: 10, hold, want };
        for n in 0..2 {
            assert!(home.hello(&id(n), 1, 1, &[]));
        }
        // The first one is on its way still when its asker asks again.
        assert!(home.answer(secs(0), &id(0), &ask(3, 0, 8)).is_some());
        assert_eq!(home.answer(secs(0), &id(0), &ask(2, 0, 1)), None);
        assert!(!home.hello(&id(0), 1, 3, &[]), "nor what it held before");
        let grant = home.answer(secs(0), &id(1), &ask(2, 0, 8)).unwrap().grant;
        assert_eq!(grant, 2, "the other one has 8");
        // The next view counts anew: who came again begins at 1.
        home.view(secs(1), 2, [id(0), id(1)]);
        assert!(home.hello(&id(0), 2, 1, &[(AccountId::local(), 8)]));
    }

    #[test]
    fn a_home_of_another_view_says_nothing() {
        let mut home = Home::default();
        home.view(secs(0), 5, [id(0), id(1)]);
        let ask = |epoch| Ask { epoch, number: 0, account: AccountId::local(), limit: 10, hold: 0, want: 4 };
        assert_eq!(home.answer(secs(0), &id(0), &ask(4)), None);
        assert_eq!(home.answer(secs(0), &id(7), &ask(5)), None);
        // It learns first.
        assert!(home.hello(&id(0), 5, 0, &[(AccountId::local(), 2)]) && !home.hello(&id(1), 4, 0, &[]));
        let held = Ask { hold: 2, ..ask(5) };
        assert_eq!(home.answer(secs(0), &id(0), &held), None);
        assert!(home.hello(&id(1), 5, 0, &[]));
        assert_eq!(home.answer(secs(0), &id(0), &held), Some(Grant { grant: 4, scarce: false }));
        // An older view changes nothing, and one with the same managers only its number.
        home.view(secs(1), 4, [id(0)]);
        assert_eq!(home.answer(secs(1), &id(1), &ask(5)), Some(Grant { grant: 4, scarce: false }));
        home.view(secs(1), 6, [id(0), id(1)]);
        assert_eq!(
            home.answer(secs(1), &id(1), &Ask { hold: 4, want: 8, ..ask(6) }),
            Some(Grant { grant: 6, scarce: true })
        );
    }
}
