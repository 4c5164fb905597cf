//! The fleet as one decider sees it, kept in the order in which it is asked.

mod caches;
mod ladder;
mod member;

use std::cmp::Reverse;
use std::collections::{self, BTreeMap};

use domain::{FunctionArn, SandboxId, WorkerId, WorkerReport};
use foldhash::HashMap;

use self::caches::Caches;
use self::ladder::{Ladder, Spot};
use self::member::{Load, Member};
use crate::cost::{Candidate, LOOKED_AT, admits, free_mb, level, size};
use crate::specification::explain;
use crate::{NoCapacity, Reason, WorkerView};

/// What an operator wants of a worker. A worker that drains by itself says so in its reports.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Standing {
    /// It takes sandboxes.
    #[default]
    Open,
    /// It takes no new sandboxes; what it has stays and serves.
    Cordoned,
    /// It takes no new sandboxes, and is to have none: idle ones are retired, busy ones after their invocation.
    Draining,
}

/// A sandbox that needs a place.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// `MemorySize` in MB.
    pub memory_mb: u32,
    /// Of whose sandboxes not many should be on one worker.
    pub function: &'a FunctionArn,
    /// Its code package or image, by whatever name [`Fleet::holds`] is told.
    pub package: &'a str,
}

/// The workers, what this decider has placed on them, and which packages they have. The answers are those of [`crate::place`] over
/// [`Fleet::views`].
///
/// A report lags behind what was placed since, and shows what other deciders placed. So it tells how much there is beside
/// this decider's own, as far as known then, and its own are counted on top, as they come and go.
#[derive(Default)]
pub struct Fleet {
    members: HashMap<u32, Member>,
    /// By id. A number is used once.
    numbers: HashMap<WorkerId, u32>,
    next_number: u32,
    /// The open members with a free slot, by size.
    ladders: BTreeMap<u32, Ladder>,
    /// How many members are here; how many of them are closed, or open without a free slot.
    here: usize,
    closed: usize,
    without_slot: usize,
    /// How many open members have how much memory in all.
    memories: BTreeMap<u64, usize>,
    sandboxes: HashMap<SandboxId, Booking>,
    /// On which member how many sandboxes of a function are.
    functions: HashMap<FunctionArn, HashMap<u32, u32>>,
    caches: Caches,
}

struct Booking {
    member: u32,
    memory_mb: u32,
    function: FunctionArn,
    starting: bool,
}

impl Fleet {
    /// A worker has reported. The first report makes it a member, also of one that was one before.
    pub fn report(&mut self, report: WorkerReport) {
        if let Some(number) = self.here(&report.worker) {
            return self.change(number, |member| member.reported(report));
        }
        let next = self.next_number;
        let number = *self.numbers.entry(report.worker.clone()).or_insert(next);
        let member = self.members.entry(number).or_insert_with(|| {
            self.next_number += 1;
            Member::new(report.clone())
        });
        member.here = true;
        member.reported(report);
        let now = member.now.clone();
        self.enlist(number, &now);
    }

    /// A worker has left or died: nothing is placed there any more. What was booked there is until it is [`Self::gone`], see
    /// [`Self::sandboxes_on`]. `false` if it was no member.
    pub fn remove(&mut self, worker: &WorkerId) -> bool {
        let Some(number) = self.here(worker) else { return false };
        self.change(number, |member| {
            member.here = false;
            member.standing = Standing::Open;
        });
        self.forget_if_over(number);
        true
    }

    /// What the operator wants of a worker; `false` if it is no member.
    pub fn set_standing(&mut self, worker: &WorkerId, standing: Standing) -> bool {
        let Some(number) = self.here(worker) else { return false };
        self.change(number, |member| {
            member.standing = standing;
            member.now.draining = member.draining || standing != Standing::Open;
        });
        true
    }

    /// Whether the idle sandboxes of this worker are to be retired: it drains, of itself or for the operator.
    pub fn drains(&self, worker: &WorkerId) -> bool {
        self.member(worker).is_some_and(|m| m.here && (m.draining || m.standing == Standing::Draining))
    }

    /// The worker has this package or image.
    pub fn holds(&mut self, worker: &WorkerId, package: &str) {
        if let Some(number) = self.here(worker) {
            self.caches.insert(package, number);
        }
    }

    /// The worker has it no more.
    pub fn drops(&mut self, worker: &WorkerId, package: &str) {
        if let Some(number) = self.here(worker) {
            self.caches.remove(package, number);
        }
    }

    /// Which worker takes a new sandbox, and why: none of `except`, which are few (they have refused it). Book it before the next
    /// question.
    pub fn place(
        &self,
        wanted: &Wanted<'_>,
        except: &collections::HashSet<WorkerId>,
    ) -> Result<(WorkerId, Reason), NoCapacity> {
        let counts = self.functions.get(wanted.function);
        let same_function = |number: u32| counts.and_then(|c| c.get(&number)).copied().unwrap_or(0);
        let holders = self.caches.holders(wanted.package);
        let candidate = |number: u32, has_package: bool| {
            let now = &self.members.get(&number).filter(|m| m.here)?.now;
            (admits(now, wanted.memory_mb) && !except.contains(&now.worker))
                .then(|| Candidate::new(number, now, wanted.memory_mb, has_package, same_function(number)))
        };
        let mut candidates: Vec<_> = holders.iter().filter_map(|&number| candidate(number, true)).collect();
        for ladder in self.ladders.values() {
            let spots = ladder.with_free(wanted.memory_mb.into()).filter(|spot| !except.contains(&spot.worker));
            for (before, spot) in spots.take(LOOKED_AT).enumerate() {
                if !holders.contains(&spot.number) {
                    candidates.extend(candidate(spot.number, false));
                }
                // Whoever is further up has at least its load, and no package, or is in already. Two, to tell the only one.
                if same_function(spot.number) == 0 && before > 0 {
                    break;
                }
            }
        }
        let excepted = except.iter().filter(|worker| self.here(worker).is_some()).count();
        match Candidate::choose(&candidates, self.here - excepted) {
            Some((number, reason)) => Ok((self.members[&number].now.worker.clone(), reason)),
            None if excepted == 0 => Err(self.explain(wanted.memory_mb)),
            None => {
                let asked = self.members.values().filter(|m| m.here && !except.contains(&m.now.worker)).map(|m| &m.now);
                Err(explain(asked, wanted.memory_mb))
            }
        }
    }

    /// A new sandbox goes to `worker`, whose reports do not show it yet; it starts, and fetches the package if need be. `false`, and
    /// nothing happens, if there is no such worker (any more).
    pub fn book(&mut self, sandbox: SandboxId, worker: &WorkerId, wanted: &Wanted<'_>) -> bool {
        self.add(sandbox, worker, wanted, |member, added| member.grow(added))
    }

    /// A sandbox that this decider takes over is on `worker`, whose reports show it. For one that does not start any more, tell
    /// [`Self::init_over`].
    pub fn adopt(&mut self, sandbox: SandboxId, worker: &WorkerId, wanted: &Wanted<'_>) -> bool {
        self.add(sandbox, worker, wanted, |member, added| member.own_up(added))
    }

    /// `Init` is over.
    pub fn init_over(&mut self, sandbox: SandboxId) {
        if let Some(booking) = self.sandboxes.get_mut(&sandbox).filter(|b| b.starting) {
            booking.starting = false;
            let number = booking.member;
            self.change(number, |member| member.shrink(Load { starting: 1, ..Load::default() }));
        }
    }

    /// Nothing is left of the sandbox.
    pub fn gone(&mut self, sandbox: SandboxId) {
        if let Some(booking) = self.sandboxes.remove(&sandbox) {
            self.change(booking.member, |member| {
                member.sandboxes.remove(&sandbox);
                member.shrink(booking.load());
            });
            self.count_down(&booking);
            self.forget_if_over(booking.member);
        }
    }

    /// Whether sandboxes may be placed on this worker, room or not.
    pub fn is_open(&self, worker: &WorkerId) -> bool {
        self.member(worker).is_some_and(|m| m.here && !m.now.draining)
    }

    /// How many members are here.
    pub fn workers(&self) -> usize {
        self.here
    }

    /// How many sandboxes are booked, on whichever worker.
    pub fn sandboxes(&self) -> usize {
        self.sandboxes.len()
    }

    /// Where a sandbox is.
    pub fn worker_of(&self, sandbox: SandboxId) -> Option<&WorkerId> {
        let booking = self.sandboxes.get(&sandbox)?;
        Some(&self.members.get(&booking.member)?.now.worker)
    }

    /// What this decider has on a worker, to be retired when it drains, lost when it is; and whether its Init is under way.
    pub fn sandboxes_on(&self, worker: &WorkerId) -> impl Iterator<Item = (SandboxId, bool)> {
        let sandboxes = self.member(worker).into_iter().flat_map(|m| &m.sandboxes);
        sandboxes.filter_map(|sandbox| Some((*sandbox, self.sandboxes.get(sandbox)?.starting)))
    }

    /// As [`crate::make_room`]: which of `idle` (least recently used first) have to go so that a sandbox of `memory_mb` has a
    /// place. Takes no more of `idle` than it needs.
    pub fn make_room(&self, memory_mb: u32, idle: impl IntoIterator<Item = SandboxId>) -> Option<Vec<SandboxId>> {
        let mut given_up: HashMap<u32, (Load, Vec<SandboxId>)> = HashMap::default();
        idle.into_iter().find_map(|sandbox| {
            let booking = self.sandboxes.get(&sandbox)?;
            let (load, sandboxes) = given_up.entry(booking.member).or_default();
            load.memory_mb += u64::from(booking.memory_mb);
            load.slots += 1;
            sandboxes.push(sandbox);
            let mut after = self.members.get(&booking.member).filter(|m| m.here)?.now.clone();
            after.memory_used_mb = after.memory_used_mb.saturating_sub(load.memory_mb);
            after.slots_used = after.slots_used.saturating_sub(load.slots);
            admits(&after, memory_mb).then(|| std::mem::take(sandboxes))
        })
    }

    /// All workers as they bear on one request, for people and for tests; in no order.
    pub fn views(&self, wanted: &Wanted<'_>) -> Vec<WorkerView> {
        let holders = self.caches.holders(wanted.package);
        let counts = self.functions.get(wanted.function);
        let view = |(number, member): (&u32, &Member)| WorkerView {
            report: member.now.clone(),
            has_package: holders.contains(number),
            same_function: counts.and_then(|c| c.get(number)).copied().unwrap_or(0),
        };
        self.members.iter().filter(|(_, member)| member.here).map(view).collect()
    }

    /// Its number, if it is here.
    fn here(&self, worker: &WorkerId) -> Option<u32> {
        let number = self.numbers.get(worker)?;
        self.members.get(number)?.here.then_some(*number)
    }

    fn member(&self, worker: &WorkerId) -> Option<&Member> {
        self.members.get(self.numbers.get(worker)?)
    }

    fn add(
        &mut self,
        sandbox: SandboxId,
        worker: &WorkerId,
        wanted: &Wanted<'_>,
        count: impl FnOnce(&mut Member, Load),
    ) -> bool {
        let Some(member) = self.here(worker) else { return false };
        // Whoever books one twice means the second.
        self.gone(sandbox);
        let (memory_mb, function) = (wanted.memory_mb, wanted.function.clone());
        let booking = Booking { member, memory_mb, function, starting: true };
        self.change(member, |m| {
            m.sandboxes.insert(sandbox);
            count(m, booking.load());
        });
        *self.functions.entry(booking.function.clone()).or_default().entry(member).or_default() += 1;
        self.sandboxes.insert(sandbox, booking);
        self.caches.insert(wanted.package, member);
        true
    }

    fn forget_if_over(&mut self, number: u32) {
        if let Some(member) = self.members.get(&number).filter(|m| !m.here && m.sandboxes.is_empty()) {
            self.numbers.remove(&member.now.worker);
            self.members.remove(&number);
        }
    }

    fn count_down(&mut self, booking: &Booking) {
        let Some(counts) = self.functions.get_mut(&booking.function) else { return };
        if let Some(count) = counts.get_mut(&booking.member) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&booking.member);
            }
        }
        if counts.is_empty() {
            self.functions.remove(&booking.function);
        }
    }

    /// Changes a member, and with it where it stands. Most reports say what was known, and change nothing.
    fn change(&mut self, number: u32, change: impl FnOnce(&mut Member)) {
        let Some(member) = self.members.get_mut(&number) else { return };
        let (was_here, before) = (member.here, member.now.clone());
        change(member);
        let (here, after) = (member.here, member.now.clone());
        if (here, &after) != (was_here, &before) {
            if was_here {
                self.delist(number, &before);
            }
            if here {
                self.enlist(number, &after);
            }
        }
    }

    fn enlist(&mut self, number: u32, now: &WorkerReport) {
        self.here += 1;
        if now.draining {
            self.closed += 1;
            return;
        }
        if now.slots > 0 {
            *self.memories.entry(now.memory_mb).or_default() += 1;
        }
        if now.slots_used < now.slots {
            let spot = Spot { free_mb: Reverse(free_mb(now)), worker: now.worker.clone(), number };
            self.ladders.entry(size(now)).or_insert_with(Ladder::new).insert(level(now), spot);
        } else {
            self.without_slot += 1;
        }
    }

    /// Undoes [`Self::enlist`].
    fn delist(&mut self, number: u32, now: &WorkerReport) {
        self.here -= 1;
        if now.draining {
            self.closed -= 1;
            return;
        }
        if let Some(count) = self.memories.get_mut(&now.memory_mb).filter(|_| now.slots > 0) {
            *count -= 1;
            if *count == 0 {
                self.memories.remove(&now.memory_mb);
            }
        }
        if now.slots_used < now.slots {
            let spot = Spot { free_mb: Reverse(free_mb(now)), worker: now.worker.clone(), number };
            if let Some(ladder) = self.ladders.get_mut(&size(now)) {
                ladder.remove(level(now), &spot);
            }
        } else {
            self.without_slot -= 1;
        }
    }

    fn explain(&self, memory_mb: u32) -> NoCapacity {
        NoCapacity {
            memory_mb,
            workers: self.here,
            draining: self.closed,
            without_slot: self.without_slot,
            largest_free_mb: self.ladders.values().filter_map(Ladder::most_free_mb).max().unwrap_or(0),
            largest_worker_mb: self.memories.last_key_value().map_or(0, |(memory_mb, _)| *memory_mb),
        }
    }
}

impl Booking {
    fn load(&self) -> Load {
        Load { memory_mb: self.memory_mb.into(), slots: 1, starting: self.starting.into() }
    }
}

#[cfg(test)]
mod tests;
