//! Workers, functions and managers in virtual time.

use std::collections::{HashSet, VecDeque};

use domain::{AccountId, FunctionArn, SandboxId, WorkerId, WorkerReport};
use fastrand::Rng;
use placement::{Fleet, Wanted};
use uuid::Uuid;

use crate::load::{self, KEPT_MINUTES, Shape};

/// Unpacked packages that a worker keeps, the latest used: 50 GB of the largest that there can be.
const PACKAGES_KEPT: usize = 200;

/// How a place is found.
#[derive(Clone, Copy, PartialEq)]
pub enum Policy {
    Fleet,
    /// Any worker that has room.
    Random,
}

pub struct World {
    policy: Policy,
    rng: Rng,
    pub workers: Vec<Worker>,
    pub functions: Vec<Function>,
    /// One of each manager: a function's is the one of its number, modulo.
    pub fleets: Vec<Fleet>,
    minute: usize,
    sandboxes: u128,
    /// Sandboxes whose Init ends with the next second.
    starting: Vec<(SandboxId, usize, usize)>,
    /// Workers of which something changed in this second. They report at its end; the reports arrive with the end of the next.
    changed: Vec<usize>,
    under_way: Vec<WorkerReport>,
    pub starts: usize,
    /// Of these, on a worker that had the package.
    pub with_package: usize,
    /// Of the starts, those of a function that had never run, whose package nobody has.
    pub first: usize,
    /// That Placement knew no place for.
    pub without_place: usize,
    /// Where another manager had taken the room in the same moment; tried again a second later.
    pub collided: usize,
    again: Vec<usize>,
}

pub struct Worker {
    pub now: WorkerReport,
    changed: bool,
    /// By the numbers of their functions.
    pub packages: VecDeque<usize>,
}

pub struct Function {
    shape: Shape,
    arn: FunctionArn,
    package: String,
    /// Where its sandboxes are.
    pub sandboxes: Vec<(SandboxId, usize)>,
    /// How many it needed in each of the last minutes.
    needed: [usize; KEPT_MINUTES],
    started: bool,
}

impl Function {
    pub fn wanted(&self) -> Wanted<'_> {
        Wanted { memory_mb: self.shape.memory_mb, function: &self.arn, package: &self.package }
    }
}

impl World {
    /// Workers of 6 and of 12 GiB, half and half, with nothing on them.
    pub fn new(policy: Policy, seed: u64, workers: usize, functions: usize, managers: usize) -> Self {
        let mut rng = Rng::with_seed(seed);
        let report = |n: usize| WorkerReport {
            worker: WorkerId(format!("worker-{n:05}").into()),
            memory_mb: 6144 << (n / 3 % 2),
            memory_used_mb: 0,
            slots: 100,
            slots_used: 0,
            starting: 0,
            draining: false,
        };
        let worker = |n| Worker { now: report(n), changed: false, packages: VecDeque::new() };
        let mut fleets: Vec<_> = (0..managers).map(|_| Fleet::default()).collect();
        fleets.iter_mut().for_each(|fleet| (0..workers).for_each(|n| fleet.report(report(n))));
        let function = |n: usize| Function {
            shape: load::function(&mut rng),
            arn: FunctionArn { region: "us-east-1".into(), account: AccountId::local(), name: format!("f{n}").into() },
            package: format!("sha256 of {n}"),
            sandboxes: Vec::new(),
            needed: [0; KEPT_MINUTES],
            started: false,
        };
        let functions = (0..functions).map(function).collect();
        Self {
            policy,
            rng,
            workers: (0..workers).map(worker).collect(),
            functions,
            fleets,
            minute: 0,
            sandboxes: 0,
            starting: Vec::new(),
            changed: Vec::new(),
            under_way: Vec::new(),
            starts: 0,
            with_package: 0,
            first: 0,
            without_place: 0,
            collided: 0,
            again: Vec::new(),
        }
    }

    /// One minute: who needs more sandboxes starts them, who has not needed some for long gives them up, in any order.
    pub fn minute(&mut self) {
        let mut events = Vec::new();
        for (n, function) in self.functions.iter_mut().enumerate() {
            let needs = function.shape.sandboxes(self.minute, &mut self.rng);
            function.needed[self.minute % KEPT_MINUTES] = needs;
            let (has, keeps) = (function.sandboxes.len(), *function.needed.iter().max().expect("ten"));
            events.extend(std::iter::repeat_n((n, true), needs.saturating_sub(has)));
            events.extend(std::iter::repeat_n((n, false), has.saturating_sub(keeps)));
        }
        self.rng.shuffle(&mut events);
        let a_second = events.len() / 60 + 1;
        for events in events.chunks(a_second) {
            for (function, starts) in events {
                if *starts { self.start(*function) } else { self.end(*function) }
            }
            self.second();
        }
        self.minute += 1;
    }

    /// Worker number `lost` and its like die at once; what was on them starts anew elsewhere.
    pub fn lose(&mut self, lost: impl Fn(usize) -> bool) {
        for n in (0..self.workers.len()).filter(|n| lost(*n)) {
            self.fleets.iter_mut().for_each(|fleet| assert!(fleet.remove(&self.workers[n].now.worker)));
            // Dead: it has no room, not even for those who choose at random.
            self.workers[n].now.draining = true;
        }
        self.starting.retain(|(_, _, worker)| !lost(*worker));
        self.under_way.clear();
        self.changed.retain(|n| !lost(*n));
        let mut again = Vec::new();
        let managers = self.fleets.len();
        for (n, function) in self.functions.iter_mut().enumerate() {
            let before = function.sandboxes.len();
            let gone = function.sandboxes.extract_if(.., |(_, worker)| lost(*worker));
            gone.for_each(|(sandbox, _)| self.fleets[n % managers].gone(sandbox));
            again.extend(std::iter::repeat_n(n, before - function.sandboxes.len()));
        }
        self.rng.shuffle(&mut again);
        // As many a second as Init takes a worker, about.
        for again in again.chunks(5000) {
            again.iter().for_each(|function| self.start(*function));
            self.second();
        }
    }

    fn start(&mut self, n: usize) {
        let sandbox = SandboxId(Uuid::from_u128(self.sandboxes));
        self.sandboxes += 1;
        let managers = self.fleets.len();
        let fleet = &mut self.fleets[n % managers];
        let wanted = self.functions[n].wanted();
        let fits = |w: &WorkerReport| {
            !w.draining && w.slots_used < w.slots && w.memory_used_mb + u64::from(wanted.memory_mb) <= w.memory_mb
        };
        let number = match self.policy {
            Policy::Random => loop {
                let n = self.rng.usize(..self.workers.len());
                if fits(&self.workers[n].now) {
                    break n;
                }
            },
            Policy::Fleet => match fleet.place(&wanted, &HashSet::new()) {
                Ok((worker, _)) => {
                    assert!(fleet.book(sandbox, &worker, &wanted));
                    worker.0["worker-".len()..].parse().expect("as it was named")
                }
                Err(_) => return self.without_place += 1,
            },
        };
        let worker = &mut self.workers[number];
        if !fits(&worker.now) {
            // Two managers have taken the same room: the worker is asked in vain.
            fleet.gone(sandbox);
            self.collided += 1;
            return self.again.push(n);
        }
        self.starts += 1;
        if let Some(at) = worker.packages.iter().position(|package| *package == n) {
            worker.packages.remove(at);
            self.with_package += 1;
        } else if worker.packages.len() == PACKAGES_KEPT {
            let dropped = worker.packages.pop_front().expect("it is full");
            self.fleets.iter_mut().for_each(|f| f.drops(&worker.now.worker, &self.functions[dropped].package));
        }
        worker.packages.push_back(n);
        worker.now.memory_used_mb += u64::from(wanted.memory_mb);
        worker.now.slots_used += 1;
        worker.now.starting += 1;
        self.first += usize::from(!self.functions[n].started);
        self.functions[n].started = true;
        self.functions[n].sandboxes.push((sandbox, number));
        self.starting.push((sandbox, n, number));
        self.change(number);
    }

    /// The one that was needed least: the newest, since the others were there when it was not.
    fn end(&mut self, n: usize) {
        let managers = self.fleets.len();
        let function = &mut self.functions[n];
        let Some((sandbox, number)) = function.sandboxes.pop() else { return };
        self.fleets[n % managers].gone(sandbox);
        let now = &mut self.workers[number].now;
        now.memory_used_mb -= u64::from(function.shape.memory_mb);
        now.slots_used -= 1;
        self.change(number);
    }

    fn second(&mut self) {
        let managers = self.fleets.len();
        for (sandbox, n, number) in std::mem::take(&mut self.starting) {
            self.fleets[n % managers].init_over(sandbox);
            self.workers[number].now.starting -= 1;
            self.change(number);
        }
        for report in self.under_way.drain(..).filter(|_| self.policy == Policy::Fleet) {
            self.fleets.iter_mut().for_each(|fleet| fleet.report(report.clone()));
        }
        for number in self.changed.drain(..) {
            self.workers[number].changed = false;
            self.under_way.push(self.workers[number].now.clone());
        }
        std::mem::take(&mut self.again).into_iter().for_each(|n| self.start(n));
    }

    fn change(&mut self, number: usize) {
        if !std::mem::replace(&mut self.workers[number].changed, true) {
            self.changed.push(number);
        }
    }
}
