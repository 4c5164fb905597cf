//! The helper process: it makes sandboxes, destroys them, and clears up when the engine is gone.
//!
//! One thread, one loop, no waiting for anything but the next event. It exists because a process with threads cannot
//! fork safely, and so that somebody is left to clear up when the engine is killed.

mod purpose;

#[cfg(feature = "microvm")]
pub(crate) use purpose::{hosts_file, resolv_conf};

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use guest::protocol::{During, Failure};
use guest::sys;
use guest::wire::Channel;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal, WaitOptions};

use super::blank::{Birth, Blank, Pattern, WayOut};
use super::cgroup::{Group, Hierarchy};
use super::config::{Egress, Network, ProcessConfig, Range};
use super::firewall::{self, Firewall};
use super::instance::{Instance, Slot, device_prefix};
use super::messages::{Order, Report, Spec};
use super::pasta::{self, Pasta};
use super::peaks;
use super::scratch::Scratch;
use super::standbys::{Kind, Standbys};

/// Blank sandboxes in the making at once: they wait for the kernel more than they compute.
const BIRTHS: usize = 4;
/// The pool is refilled when no sandbox was asked for in this time, so that it does not compete with those.
const LULL: Duration = Duration::from_millis(50);
/// After a failure to refill the pool.
const PAUSE: Duration = Duration::from_secs(5);
/// Between looks at a sandbox that does not die at once.
const TICK: Duration = Duration::from_millis(5);
/// Lambda's default size of `/tmp`.
const USUAL_TMP_MB: u32 = 512;
/// For all sandboxes to die when the helper ends.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// Runs the helper. Standard input is the socket to the engine.
pub fn run() -> ! {
    let code = match serve() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("emberbox sandbox helper: {error}");
            1
        }
    };
    sys::exit(code)
}

fn serve() -> io::Result<()> {
    let engine = take_socket()?;
    let Some((Order::Start(config), _)) = engine.receive()? else { return Ok(()) };
    match Helper::new(engine, config) {
        Ok(mut helper) => {
            helper.run()?;
            helper.clear_up()
        }
        Err((engine, failure)) => engine.send(&Report::NotStarted(failure), &[]),
    }
}

/// The socket to the engine, which was standard input; and what a helper does first in any case.
pub(crate) fn take_socket() -> io::Result<Channel> {
    let engine = Channel::new(rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?);
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    drop(null);
    // Ctrl-C in the terminal is for the engine, which says what becomes of the sandboxes.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    raise_descriptor_limit();
    Ok(engine)
}

/// Each sandbox takes some descriptors, in the helper and in the engine.
pub fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

struct Helper {
    engine: Channel,
    pool: usize,
    pattern: Pattern,
    instance: Instance,
    group: Option<Group>,
    firewall: Option<Firewall>,
    dns: Vec<IpAddr>,
    notes: Vec<String>,
    /// For the names of cgroups.
    births_ever: u64,
    births: Vec<Birth>,
    blanks: VecDeque<Blank>,
    standbys: Standbys,
    /// Asked for, while there is no blank one.
    waiting: VecDeque<(u64, Spec)>,
    live: HashMap<u64, Dying>,
    dying: Vec<Dying>,
    refill_at: Instant,
    /// The size of `/tmp` that was last wanted, and that blank sandboxes have.
    tmp_mb: u32,
}

/// What it takes to get rid of a sandbox.
struct Dying {
    /// Its PID 1, which takes everything inside along, and its pasta.
    pidfds: Vec<OwnedFd>,
    group: Option<Group>,
    slot: Slot,
    /// Whom to report as destroyed.
    number: Option<u64>,
}

impl Helper {
    fn new(engine: Channel, config: ProcessConfig) -> Result<Self, (Channel, Failure)> {
        match Self::set_up(&config) {
            Ok(setting) => {
                let Setting { pattern, instance, group, firewall, dns, notes } = setting;
                Ok(Self {
                    engine,
                    pool: config.pool,
                    pattern,
                    instance,
                    group,
                    firewall,
                    dns,
                    notes,
                    births_ever: 0,
                    births: Vec::new(),
                    blanks: VecDeque::new(),
                    standbys: Standbys::new(config.standbys),
                    waiting: VecDeque::new(),
                    live: HashMap::new(),
                    dying: Vec::new(),
                    refill_at: Instant::now(),
                    tmp_mb: USUAL_TMP_MB,
                })
            }
            Err(failure) => Err((engine, failure)),
        }
    }

    fn set_up(config: &ProcessConfig) -> Result<Setting, Failure> {
        let mut notes = Vec::new();
        let privileged = rustix::process::geteuid().is_root();
        let hierarchy = Hierarchy::detect();
        let instance = Instance::claim(config.max_sandboxes, hierarchy.as_ref(), &mut notes)
            .during("claim sandbox slots of this host")?;
        let (group, note) = make_group(hierarchy.as_ref(), instance.number, config.memory_mb);
        notes.push(note);
        if privileged {
            notes.push("root: every sandbox has user ids of its own".to_owned());
        } else {
            enter_user_namespace()?;
            notes.push("not root: functions run as the user of this process, in namespaces".to_owned());
            notes.push("not root: supplementary groups of this user stay with functions".to_owned());
        }
        notes.push(match sys::landlock_abi() {
            Some(abi) => format!("Landlock (ABI {abi}): enforced"),
            None => "Landlock: this kernel has none, one wall less".to_owned(),
        });
        let (scratch, note) = Scratch::new(&config.state_dir);
        notes.push(note);

        let (mut firewall, mut dns, mut way_out) = (None, Vec::new(), WayOut::None);
        match &config.network {
            Network::None => notes.push("network: none, functions have loopback only".to_owned()),
            Network::Egress(egress) if !privileged => {
                dns = name_servers(egress);
                match Pasta::find(firewall::rules_inside(egress, &dns)) {
                    Ok(pasta) => {
                        way_out = WayOut::Pasta(pasta);
                        notes.push("network: egress by one pasta process for each sandbox, of 20 MiB".to_owned());
                        if !pasta::host_is_connected() {
                            let until = "network: this host has no default route; until it has, new sandboxes have loopback only";
                            notes.push(until.to_owned());
                        }
                    }
                    Err(why) => notes.push(format!("network: none, functions have loopback only: without root, {why}")),
                }
            }
            Network::Egress(egress) => {
                dns = name_servers(egress);
                let table = Firewall::of(instance.number);
                table
                    .install(egress, &dns, &device_prefix(instance.number))
                    .during("set up the packet filter with nft (package nftables)")?;
                firewall = Some(table);
                firewall::enable_forwarding().during("enable IP forwarding (net.ipv4.ip_forward)")?;
                way_out = WayOut::Links(egress.pool);
                notes.extend(notes_on_links(egress.pool, &dns));
            }
        }
        let filter = guest::seccomp::Programs::compile().map_err(|error| {
            Failure::host(format!("compile seccomp filter: {error}"), &io::ErrorKind::Unsupported.into())
        })?;
        let pattern = Pattern { instance: instance.number, privileged, way_out, filter, scratch };
        Ok(Setting { pattern, instance, group, firewall, dns, notes })
    }

    /// Serves until it is told to stop, or nobody is left to tell.
    fn run(&mut self) -> io::Result<()> {
        self.engine.send(&Report::Started { notes: std::mem::take(&mut self.notes) }, &[])?;
        loop {
            self.serve_waiting();
            self.refill();
            for unwanted in self.standbys.expire(Instant::now()) {
                self.kill(unwanted.into());
            }
            let Ready { order: order_ready, births, standbys } = self.wait_for_event()?;
            for index in standbys.into_iter().rev() {
                if let Err((blank, failure)) = self.standbys.hear(index) {
                    self.kill(blank.into());
                    self.warn("standbys", &failure);
                }
            }
            for index in births.into_iter().rev() {
                let birth = self.births.swap_remove(index);
                self.born(birth);
            }
            self.bury();
            reap();
            if order_ready {
                match self.engine.receive() {
                    Ok(Some((Order::Create { number, spec }, _))) => self.waiting.push_back((number, spec)),
                    Ok(Some((Order::Destroy { number }, _))) => self.destroy(number),
                    Ok(Some((Order::Start(_) | Order::Stop, _)) | None) | Err(_) => return Ok(()),
                }
            }
        }
    }

    fn wait_for_event(&self) -> io::Result<Ready> {
        let mut watched = vec![PollFd::from_borrowed_fd(self.engine.as_fd(), PollFlags::IN)];
        let watch = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        watched.extend(self.births.iter().map(|birth| watch(birth.done())));
        watched.extend(self.standbys.starting().map(watch));
        let starting = watched.len() - 1 - self.births.len();
        watched.extend(self.dying.iter().flat_map(|dying| &dying.pidfds).map(|fd| watch(fd.as_fd())));
        let lacking = self.births.len() + self.blanks.len() < self.pool
            || !self.blanks.is_empty() && self.standbys.lacking().is_some();
        let until = |then: Instant| then.saturating_duration_since(Instant::now());
        let refill = lacking.then(|| until(self.refill_at));
        let expiry = self.standbys.expiry().map(until);
        let tick = (!self.dying.is_empty()).then_some(TICK);
        let timeout = refill.into_iter().chain(expiry).chain(tick).min().map(|time| time.max(Duration::from_millis(1)));
        let timeout = timeout.map(|time| Timespec::try_from(time).expect("short times fit"));
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut watched, timeout.as_ref()))?;
        let ready: Vec<bool> = watched.iter().map(|fd| !fd.revents().is_empty()).collect();
        let (births, rest) = ready[1..].split_at(self.births.len());
        let which = |ready: &[bool]| (0..ready.len()).filter(|index| ready[*index]).collect();
        Ok(Ready { order: ready[0], births: which(births), standbys: which(&rest[..starting]) })
    }

    fn serve_waiting(&mut self) {
        while let Some((_, spec)) = self.waiting.front() {
            let standby = Kind::of(spec).and_then(|kind| self.standbys.take(&kind, Instant::now()));
            let stands_by = standby.is_some();
            let Some(blank) = standby.or_else(|| self.blanks.pop_front()) else { return };
            if is_over(&blank.pidfd) {
                self.kill(blank.into());
                continue;
            }
            let (number, spec) = self.waiting.pop_front().expect("it is not empty");
            self.refill_at = Instant::now() + LULL;
            self.tmp_mb = spec.ephemeral_mb;
            let assigned = if stands_by { self.complete(&blank, &spec) } else { self.assign(&blank, &spec) };
            match assigned {
                Ok(()) => {
                    let group = blank.group.clone();
                    let init = if group.is_none() { peaks::pid_of(&blank.pidfd) } else { None };
                    let report = Report::Created { number, group, init };
                    // An engine that is gone is noticed by the next receive.
                    let _ = self.engine.send(&report, &[blank.control.as_fd()]);
                    self.live.insert(number, Dying { number: Some(number), ..Dying::from(blank) });
                }
                Err(failure) => {
                    self.kill(blank.into());
                    self.report(&Report::Failed { number, failure });
                }
            }
        }
    }

    /// Begins as many births as are lacking: at once for those who wait, else in a lull.
    fn refill(&mut self) {
        let lull = Instant::now() >= self.refill_at;
        if lull && self.waiting.is_empty() {
            self.start_standbys();
        }
        let wanted = self.waiting.len() + if lull { self.pool.saturating_sub(self.blanks.len()) } else { 0 };
        while self.births.len() < wanted.min(BIRTHS) {
            let Some(slot) = self.instance.take() else {
                let error = io::Error::from_raw_os_error(libc::EAGAIN);
                self.cannot_make(Failure::host("find a free sandbox slot (max_sandboxes)", &error));
                return;
            };
            self.births_ever += 1;
            let group = self.group.as_ref().map(|group| group.child(&self.births_ever.to_string()));
            match Birth::start(&self.pattern, slot, group, self.tmp_mb) {
                Ok(birth) => self.births.push(birth),
                Err(error) => {
                    self.instance.put(slot);
                    self.cannot_make(Failure::host("fork", &error));
                    return;
                }
            }
        }
    }

    /// Makes sandboxes with standbys of the blank ones.
    fn start_standbys(&mut self) {
        while let Some(kind) = self.standbys.lacking() {
            let Some(blank) = self.blanks.pop_front() else { return };
            if is_over(&blank.pidfd) {
                self.kill(blank.into());
                continue;
            }
            if let Err(failure) = self.prepare(&blank, &kind) {
                self.kill(blank.into());
                self.standbys.forget(&kind);
                self.warn("standbys", &failure);
                continue;
            }
            self.standbys.add(blank, kind);
        }
    }

    fn born(&mut self, birth: Birth) {
        match birth.finish() {
            Ok(blank) => self.blanks.push_back(blank),
            Err(failure) => {
                let Birth { group, slot, .. } = birth;
                self.kill(Dying { pidfds: Vec::new(), group, slot, number: None });
                self.cannot_make(failure);
            }
        }
    }

    /// Tells whoever waits longest, or else the operator; and pauses.
    fn cannot_make(&mut self, failure: Failure) {
        self.refill_at = Instant::now() + PAUSE;
        match self.waiting.pop_front() {
            Some((number, _)) => self.report(&Report::Failed { number, failure }),
            None => self.warn("blank sandboxes", &failure),
        }
    }

    fn warn(&self, what: &str, failure: &Failure) {
        let text = format!("cannot make {what}: {}: {}", failure.operation, failure.source());
        self.report(&Report::Warning { text });
    }

    fn destroy(&mut self, number: u64) {
        self.waiting.retain(|(waiting, _)| *waiting != number);
        match self.live.remove(&number) {
            Some(sandbox) => self.kill(sandbox),
            None => self.report(&Report::Destroyed { number }),
        }
    }

    fn kill(&mut self, sandbox: Dying) {
        sandbox.strike();
        self.dying.push(sandbox);
        self.bury();
    }

    /// Forgets sandboxes that are dead and removes what they had.
    fn bury(&mut self) {
        let (over, dying) = std::mem::take(&mut self.dying).into_iter().partition::<Vec<_>, _>(Dying::is_buried);
        self.dying = dying;
        for sandbox in over {
            self.instance.put(sandbox.slot);
            if let Some(number) = sandbox.number {
                self.report(&Report::Destroyed { number });
            }
        }
        // Some may have been frozen again in the meantime, by an engine that did not know.
        self.dying.iter().for_each(Dying::strike);
    }

    fn report(&self, report: &Report) {
        // An engine that is gone is noticed by the next receive.
        let _ = self.engine.send(report, &[]);
    }

    /// Removes everything.
    fn clear_up(mut self) -> io::Result<()> {
        let deadline = Instant::now() + LAST_WAIT;
        while let Some(birth) = self.births.pop() {
            self.born(birth);
        }
        let blanks = self.blanks.drain(..).chain(self.standbys.drain()).map(Dying::from);
        let all: Vec<Dying> = self.live.drain().map(|(_, sandbox)| sandbox).chain(blanks).collect();
        all.into_iter().for_each(|sandbox| {
            sandbox.strike();
            self.dying.push(sandbox);
        });
        while !self.dying.is_empty() && Instant::now() < deadline {
            self.wait_for_deaths()?;
            self.bury();
        }
        if let Some(firewall) = &self.firewall {
            firewall.remove()?;
        }
        if let Some(group) = &self.group {
            group.remove()?;
        }
        Ok(())
    }

    fn wait_for_deaths(&self) -> io::Result<()> {
        let pidfds = self.dying.iter().flat_map(|dying| &dying.pidfds);
        let mut watched: Vec<_> = pidfds.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let tick = Timespec::try_from(TICK).expect("short times fit");
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut watched, Some(&tick)))?;
        Ok(())
    }
}

/// What [`Helper::run`] has to look at.
struct Ready {
    order: bool,
    births: Vec<usize>,
    standbys: Vec<usize>,
}

struct Setting {
    pattern: Pattern,
    instance: Instance,
    group: Option<Group>,
    firewall: Option<Firewall>,
    dns: Vec<IpAddr>,
    notes: Vec<String>,
}

impl Dying {
    fn strike(&self) {
        for pidfd in &self.pidfds {
            let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
        }
        if let Some(group) = &self.group {
            group.thaw();
        }
    }

    /// Dead, and its cgroup removed.
    fn is_buried(&self) -> bool {
        self.pidfds.iter().all(is_over) && self.group.as_ref().is_none_or(|group| group.remove().is_ok())
    }
}

impl From<Blank> for Dying {
    fn from(blank: Blank) -> Self {
        let pidfds = std::iter::once(blank.pidfd).chain(blank.pasta).collect();
        Self { pidfds, group: blank.group, slot: blank.slot, number: None }
    }
}

/// Lets go of children that have ended: midwives, and PIDs 1, which [`is_over`] has told about.
fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

/// Whether a process has ended.
fn is_over(pidfd: &OwnedFd) -> bool {
    let mut watched = [PollFd::new(pidfd, PollFlags::IN)];
    rustix::event::poll(&mut watched, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// The cgroup of an instance if it can be made; and in words what is so.
fn make_group(hierarchy: Option<&Hierarchy>, instance: u32, memory_mb: Option<u64>) -> (Option<Group>, String) {
    // Processes are limited all the same, by their resource limit, which the kernel counts in each user namespace apart.
    const UNLIMITED: &str = "memory and CPU are not limited, sandboxes are not frozen";
    let Some(hierarchy) = hierarchy else { return (None, format!("no cgroups on this host: {UNLIMITED}")) };
    let group = hierarchy.instance(instance);
    match group.make().and_then(|()| memory_mb.map_or(Ok(()), |bound| group.limit_memory(bound))) {
        Ok(()) => (Some(group), hierarchy.describe()),
        Err(error) => (None, format!("cgroups cannot be used ({error}): {UNLIMITED}")),
    }
}

/// What is and what is not so where sandboxes have links to the host.
pub(crate) fn notes_on_links(pool: Range, dns: &[IpAddr]) -> Vec<String> {
    let mut notes = vec![format!("network: egress by NAT from {pool}; IP forwarding of this host is on")];
    notes.extend(firewall::obstacle());
    if dns.is_empty() {
        notes.push("network: no name server outside loopback is known; name one in `dns`".to_owned());
    }
    notes
}

/// What functions are told; the host's where the configuration names none.
pub(crate) fn name_servers(egress: &Egress) -> Vec<IpAddr> {
    if egress.dns.is_empty() { firewall::host_name_servers() } else { egress.dns.clone() }
}

/// Makes this process root of a user namespace of its own, in which it can mount.
pub(crate) fn enter_user_namespace() -> Result<(), Failure> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    sys::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS).during(
        "make a user namespace without root (kernel.unprivileged_userns_clone, user.max_user_namespaces, AppArmor)",
    )?;
    for (file, value) in
        [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))]
    {
        std::fs::write(format!("/proc/self/{file}"), value).during(format!("write {file}"))?;
    }
    // The change of user namespace took this away, without which pasta, which has no privilege, cannot open the
    // namespaces of our children. PID 1 hides itself before anything else runs beside it.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).during("make the helper dumpable")
}
