//! From nothing to a sandbox, in two steps: a VM that has booted, and what it is for.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use domain::SandboxId;
use guest::protocol::{During, Uplink};
use guest::vm::protocol::{CONTROL_PORT, OUTPUT_PORT, Order, Resume, Start, VERSION, link_port};
use parking_lot::Mutex;
use rustix::rand::GetRandomFlags;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::config::{Accel, MicrovmConfig};
use super::control::Control;
use super::images::Images;
use super::kept;
use super::machine::{Drive, Engine, Machine, Vm};
use super::network::Outside;
use super::pool::Kind;
use super::rest::Rest;
use super::sandbox::MicrovmSandbox;
use super::seat::{self, Claim, Seat, supervise};
use crate::api::{Listener, Process, ProcessId, SandboxError, SandboxEvent, SandboxSpec};
use crate::process::cgroup::Group;
use crate::process::instance::Instance;
use crate::process::{error_of, helper};

/// Most processes and threads of a sandbox.
const PIDS: u32 = 1024;
/// MB that a VM has beside the sandbox's limit: for the guest's kernel and the agent.
const GUEST_MB: u32 = 56;
/// And for each so many MB of the limit one more, for the kernel's records of memory.
const GUEST_SHARE: u32 = 24;
/// MB that the processes of a VM may take on the host beside the guest's memory.
const HOST_MB: u32 = 96;
/// And when they emulate: QEMU's cache of translated code.
const EMULATION_MB: u32 = 192;
/// Random bytes for a guest.
const SEED: usize = 64;

/// What a VM begins with.
#[derive(Clone, Copy)]
pub enum Origin<'a> {
    /// A boot for nobody yet.
    Nobody,
    /// A boot for this sandbox.
    New(&'a SandboxSpec),
    /// A snapshot of this one.
    Snapshot(&'a SandboxSpec, &'a Path),
}

/// What VMs are made with.
pub struct Core {
    pub config: MicrovmConfig,
    pub engine: Box<dyn Engine>,
    pub images: Images,
    pub vms: PathBuf,
    pub instance: Arc<Mutex<Instance>>,
    /// The cgroup of all of them.
    pub group: Option<Group>,
    pub privileged: bool,
    /// Nothing where functions have loopback only.
    pub outside: Option<Arc<Outside>>,
    pub processors: usize,
    /// For emulated boots, which take a processor each: more at once would only time out together.
    pub boots: Option<Arc<Semaphore>>,
    /// MB of the host that all VMs may take, as they are limited.
    pub claimed: Arc<AtomicU64>,
    /// Kills all.
    pub end: CancellationToken,
    /// One task for each VM, and others.
    pub tasks: TaskTracker,
}

/// A VM whose agent has said its first word. Dropping it kills it.
pub struct Booted {
    pub id: SandboxId,
    pub control: Arc<Control>,
    /// Kills it.
    pub end: CancellationToken,
    /// Set when nothing is left of it.
    pub gone: CancellationToken,
    kind: Kind,
    machine: Arc<dyn Machine>,
    /// To be kept in a snapshot.
    drives: Vec<Drive>,
    directory: PathBuf,
    user: Option<(u32, u32)>,
    group: Option<Group>,
    uplink: Option<Uplink>,
    listeners: HashMap<u16, Listener>,
    outputs: tokio::net::UnixListener,
    sender: mpsc::UnboundedSender<SandboxEvent>,
    events: mpsc::UnboundedReceiver<SandboxEvent>,
    ending: DropGuard,
    /// To boot, which is over when its sandbox is made, or it waits.
    permit: Option<OwnedSemaphorePermit>,
}

impl Booted {
    /// Returns when nothing is left of it.
    pub async fn destroy(self) {
        let Self { ending, gone, .. } = self;
        drop(ending);
        gone.cancelled().await;
    }
}

impl Core {
    /// What a VM for this must be like.
    pub fn kind(&self, spec: &SandboxSpec) -> Kind {
        Kind {
            memory_mb: spec.memory_mb + GUEST_MB + spec.memory_mb / GUEST_SHARE,
            vcpus: (spec.vcpus.ceil() as usize).clamp(1, self.processors) as u32,
            drives: spec.mounts.len() + 2,
        }
    }

    /// MB of the host that such a VM may take.
    fn host_mb(&self, kind: Kind) -> u32 {
        let emulation = if self.config.accel == Accel::Tcg { EMULATION_MB } else { 0 };
        kind.memory_mb + HOST_MB + emulation
    }

    /// Whether another one of this kind finds a place, and memory if it were to take all that it may.
    pub fn has_room(&self, kind: Kind) -> bool {
        let memory = u64::from(self.host_mb(kind)) + self.claimed.load(Ordering::Relaxed);
        self.config.memory_mb.is_none_or(|limit| memory <= limit) && self.instance.lock().has_free()
    }

    async fn drives(&self, spec: &SandboxSpec, owner: Option<(u32, u32)>) -> Result<Vec<Drive>, SandboxError> {
        let mut drives = Vec::new();
        for source in std::iter::once(&spec.root).chain(spec.mounts.iter().map(|mount| &mount.source)) {
            let file = self.images.of(source).await?.try_clone().during("open an image").map_err(error_of)?;
            drives.push(Drive { file, writable: false });
        }
        drives.push(Drive { file: self.images.scratch(spec.ephemeral_mb, owner).await?, writable: true });
        Ok(drives)
    }

    /// Drives without contents, in the order of [`Core::drives`].
    fn blank_drives(&self, number: usize, owner: Option<(u32, u32)>) -> Result<Vec<Drive>, SandboxError> {
        let last = number.saturating_sub(1);
        let owner = |number| if number == last { owner } else { None };
        let drive = |number| Ok(Drive { file: self.images.blank(owner(number))?, writable: number == last });
        (0..number).map(drive).collect()
    }

    /// What the agent is told; the drives are in the order of [`Core::drives`].
    fn order(&self, spec: &SandboxSpec, uplink: Option<Uplink>, exchanged: Vec<(String, u64)>) -> Order {
        let targets = spec.mounts.iter().enumerate();
        Order::Start(Start {
            memory: u64::from(spec.memory_mb) << 20,
            pids: PIDS,
            time: time(),
            seed: seed(),
            root: self.engine.drive(0),
            tmp: self.engine.drive(1 + spec.mounts.len()),
            mounts: targets.map(|(n, mount)| (self.engine.drive(1 + n), mount.target.clone())).collect(),
            exchanged,
            hosts: helper::hosts_file(&spec.hosts),
            uplink,
            resolv_conf: self.outside.as_ref().map(|outside| outside.resolv_conf()).unwrap_or_default(),
            listen: spec.listen.clone(),
        })
    }

    async fn kept_drives(
        &self,
        spec: &SandboxSpec,
        owner: Option<(u32, u32)>,
        snapshot: &Path,
    ) -> Result<Vec<Drive>, SandboxError> {
        let scratch = self.images.scratch(spec.ephemeral_mb, owner).await?;
        let (snapshot, count) = (snapshot.to_owned(), 2 + spec.mounts.len());
        let opened = tokio::task::spawn_blocking(move || kept::drives(&snapshot, count, scratch)).await;
        opened
            .map_err(io::Error::other)
            .and_then(|drives| drives)
            .map_err(host("open the drives of a snapshot", spec.id))
    }

    /// Starts a VM, and waits for its agent's first word.
    pub async fn boot(&self, id: SandboxId, kind: Kind, origin: Origin<'_>) -> Result<Booted, SandboxError> {
        let host = |operation: &str| host(operation, id);
        let seat = Seat::take(id, &self.instance, &self.vms, self.group.as_ref(), self.privileged);
        let mut seat = seat.ok_or_else(|| host("find a number")(io::ErrorKind::QuotaExceeded.into()))?;
        let host_mb = self.host_mb(kind);
        seat.claim = Some(Claim::of(host_mb, &self.claimed));
        let drives = match origin {
            Origin::New(spec) => self.drives(spec, seat.user).await?,
            Origin::Snapshot(spec, kept) => self.kept_drives(spec, seat.user, kept).await?,
            Origin::Nobody => self.blank_drives(kind.drives, seat.user)?,
        };
        let kept = copies(&drives).map_err(host("open the drives"))?;
        let permit = match &self.boots {
            Some(boots) => Some(Arc::clone(boots).acquire_owned().await.map_err(|_| SandboxError::Gone(id))?),
            None => None,
        };
        if let Some(group) = &seat.group {
            // Its share of CPU only once it has booted: what a small function has would take seconds for that.
            let all = self.processors as f64;
            group.make().and_then(|()| group.limit(host_mb, all)).map_err(host("make the cgroup"))?;
        }
        seat.prepare().map_err(host("make the directory"))?;
        let listen = |port| seat::listen(&seat.directory, seat.user, port).map_err(host("listen"));
        let (control, outputs) = (listen(CONTROL_PORT)?, listen(OUTPUT_PORT)?);
        let outputs = tokio::net::UnixListener::from_std(outputs).map_err(host("listen"))?;
        let listeners = match origin {
            Origin::New(spec) | Origin::Snapshot(spec, _) => {
                links(&seat.directory, seat.user, spec).map_err(host("listen"))?
            }
            Origin::Nobody => HashMap::new(),
        };
        let (mut tap, mut uplink) = (None, None);
        if let Some(outside) = &self.outside {
            let (its_tap, link, its_uplink) = outside.connect(seat.slot, seat.user.map(|(user, _)| user)).await?;
            (tap, uplink, seat.link) = (Some(its_tap), Some(its_uplink), Some(link));
        }
        let (directory, user, group) = (seat.directory.clone(), seat.user, seat.group.clone());
        let vm = Vm {
            id,
            directory: directory.clone(),
            user,
            group: group.clone(),
            memory_mb: kind.memory_mb,
            vcpus: kind.vcpus,
            tap,
            drives,
            blank: matches!(origin, Origin::Nobody),
        };
        let machine: Arc<dyn Machine> = match origin {
            Origin::Snapshot(_, kept) => self.engine.restore(vm, kept).await?.into(),
            _ => self.engine.boot(vm).await?.into(),
        };

        // From here on the task clears up, whatever happens.
        let (end, gone) = (self.end.child_token(), CancellationToken::new());
        let ending = end.clone().drop_guard();
        self.tasks.spawn(supervise(Arc::clone(&machine), seat, end.clone(), gone.clone()));
        let (sender, events) = mpsc::unbounded_channel();
        let limit = self.config.boot_limit;
        let greeted = tokio::select! {
            greeted = tokio::time::timeout(limit, greet(control, sender.clone())) => {
                greeted.unwrap_or_else(|_| Err(late(limit)))
            }
            () = end.cancelled() => Err(io::Error::other("it ended")),
        };
        match greeted {
            Ok(control) => Ok(Booted {
                id,
                control: Arc::new(control),
                end,
                gone,
                kind,
                machine,
                drives: kept,
                directory,
                user,
                group,
                uplink,
                listeners,
                outputs,
                sender,
                events,
                ending,
                permit,
            }),
            Err(error) => Err(host("boot a microVM")(abandon(error, machine.as_ref(), ending, &gone).await)),
        }
    }

    /// Lets a VM that was booted for nobody wait.
    pub async fn let_wait(&self, mut booted: Booted) -> Result<Booted, SandboxError> {
        let order = Order::Wait { detach: self.engine.exchanges_silently() };
        match ask(&booted, &order, self.config.boot_limit).await {
            Ok(()) => {
                booted.permit = None;
                Ok(booted)
            }
            Err(error) => {
                let Booted { id, machine, ending, gone, .. } = booted;
                Err(host("boot a microVM", id)(abandon(error, machine.as_ref(), ending, &gone).await))
            }
        }
    }

    /// Makes the images that a sandbox wants, which are kept.
    pub async fn prepare(&self, spec: &SandboxSpec) -> Result<(), SandboxError> {
        for source in std::iter::once(&spec.root).chain(spec.mounts.iter().map(|mount| &mount.source)) {
            self.images.of(source).await?;
        }
        Ok(())
    }

    /// Gives one that waits what it is for.
    pub async fn take(&self, mut booted: Booted, spec: &SandboxSpec) -> Result<MicrovmSandbox, SandboxError> {
        booted.listeners = links(&booted.directory, booted.user, spec).map_err(host("listen", spec.id))?;
        let drives = self.drives(spec, booted.user).await?;
        let mut exchanged = Vec::new();
        for (number, drive) in drives.iter().enumerate() {
            let size = drive.file.metadata().map_err(host("look at the drives", spec.id))?.len();
            exchanged.push((self.engine.drive(number), size));
        }
        booted.drives = copies(&drives).map_err(host("open the drives", spec.id))?;
        booted.machine.exchange(drives, &booted.directory).await?;
        self.begin(booted, spec, exchanged).await
    }

    /// From a VM to a sandbox. `exchanged`: drives that are others since it has booted, and their sizes; empty for one that
    /// was booted for this.
    pub async fn begin(
        &self,
        booted: Booted,
        spec: &SandboxSpec,
        exchanged: Vec<(String, u64)>,
    ) -> Result<MicrovmSandbox, SandboxError> {
        let waited = !exchanged.is_empty();
        let order = self.order(spec, booted.uplink.clone(), exchanged);
        self.make(booted, spec, &order, waited).await
    }

    /// From a VM that was restored to a sandbox, and the output of its processes.
    pub async fn resume(
        &self,
        booted: Booted,
        spec: &SandboxSpec,
        processes: &[ProcessId],
    ) -> Result<(MicrovmSandbox, Vec<Process>), SandboxError> {
        let running: Vec<_> = processes.iter().map(|process| process.0).collect();
        booted.control.expect(running.iter().copied());
        let order = Order::Resume(Resume { time: time(), seed: seed(), uplink: booted.uplink.clone(), running });
        let sandbox = self.make(booted, spec, &order, false).await?;
        // Their connections are there: they were made before the guest said that it goes on.
        let mut running = Vec::new();
        for &id in processes {
            let host = || host("take the output of processes", spec.id);
            let outputs = sandbox.outputs.lock().await;
            let accepted = tokio::time::timeout(self.config.answer_limit, outputs.accept()).await;
            let (output, _) = accepted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(host())?;
            running.push(Process { id, output: output.into_std().map_err(host())?.into() });
        }
        Ok((sandbox, running))
    }

    /// By this order.
    async fn make(
        &self,
        booted: Booted,
        spec: &SandboxSpec,
        order: &Order,
        waited: bool,
    ) -> Result<MicrovmSandbox, SandboxError> {
        // One that hangs may have done so for a while.
        let limit = if waited { self.config.answer_limit } else { self.config.boot_limit };
        let begun = ask(&booted, order, limit).await;
        let host_mb = self.host_mb(booted.kind);
        let Booted { control, end, gone, machine, drives, group, listeners, outputs, sender, events, ending, .. } =
            booted;
        if let Err(error) = begun {
            return Err(host("boot a microVM", spec.id)(abandon(error, machine.as_ref(), ending, &gone).await));
        }
        if let (Accel::Kvm, Some(group)) = (self.config.accel, &group) {
            group.limit(host_mb, spec.vcpus).map_err(host("limit the CPU", spec.id))?;
        }
        self.tasks.spawn(listen_to(spec.id, Arc::clone(&control), sender, end.clone()));
        let rest = Rest::new(Arc::clone(&machine), Arc::clone(&control), self.config.answer_limit);
        self.tasks.spawn(Arc::clone(&rest).keep(spec.id, self.config.rest_after, end.clone()));
        Ok(MicrovmSandbox {
            id: spec.id,
            machine,
            drives,
            control,
            listeners: Mutex::new(listeners),
            outputs: tokio::sync::Mutex::new(outputs),
            events: Mutex::new(Some(events)),
            rest,
            waited,
            end: ending.disarm(),
            answer_limit: self.config.answer_limit,
            gone,
        })
    }
}

/// Nanoseconds since 1970.
fn time() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(0)
}

/// Random bytes for a guest.
fn seed() -> Vec<u8> {
    let mut seed = vec![0; SEED];
    // Without it the guest's own entropy has to do.
    let _ = rustix::rand::getrandom(&mut seed[..], GetRandomFlags::empty());
    seed
}

fn copies(drives: &[Drive]) -> io::Result<Vec<Drive>> {
    drives.iter().map(Drive::try_clone).collect()
}

fn host(operation: &str, id: SandboxId) -> impl Fn(io::Error) -> SandboxError + use<> {
    let operation = format!("{operation} for sandbox {id}");
    move |source| SandboxError::Host { operation: operation.clone(), source }
}

fn late(limit: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("timed out after {limit:?}"))
}

/// Where the guest's connections arrive that a sandbox's processes make to the worker.
fn links(directory: &Path, user: Option<(u32, u32)>, spec: &SandboxSpec) -> io::Result<HashMap<u16, Listener>> {
    let listen = |&port: &u16| Ok((port, Listener::Unix(seat::listen(directory, user, link_port(port))?)));
    spec.listen.iter().map(listen).collect()
}

/// From the kernel's first instruction to the agent's first word.
async fn greet(control: UnixListener, events: mpsc::UnboundedSender<SandboxEvent>) -> io::Result<Control> {
    // One connection: nobody listens there any more when a function could try.
    let (stream, _) = tokio::net::UnixListener::from_std(control)?.accept().await?;
    Control::greet(stream, VERSION, events).await
}

async fn ask(booted: &Booted, order: &Order, limit: Duration) -> io::Result<()> {
    let answer = tokio::select! {
        answer = booted.control.ask(order, limit) => answer.map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => late(limit),
            _ => error,
        })?,
        error = booted.control.listen() => return Err(error),
        () = booted.end.cancelled() => return Err(io::Error::other("it ended")),
    };
    let failed =
        |failure: guest::protocol::Failure| format!("in the guest: {}: {}", failure.operation, failure.source());
    answer.map(drop).map_err(|failure| io::Error::other(failed(failure)))
}

/// Ends a VM of which nothing will come, and says what it said.
async fn abandon(error: io::Error, machine: &dyn Machine, ending: DropGuard, gone: &CancellationToken) -> io::Error {
    let text = match machine.console() {
        console if console.is_empty() => format!("{error}; its console has nothing"),
        console => format!("{error}; its console: {console}"),
    };
    drop(ending);
    gone.cancelled().await;
    io::Error::new(error.kind(), text)
}

/// Hears the agent until the end; a conversation that ends is the end of the VM.
async fn listen_to(
    id: SandboxId,
    control: Arc<Control>,
    events: mpsc::UnboundedSender<SandboxEvent>,
    end: CancellationToken,
) {
    tokio::select! {
        error = control.listen() => {
            if error.kind() == io::ErrorKind::InvalidData && !end.is_cancelled() {
                tracing::warn!(sandbox = %id, %error, "a microVM breaks the protocol, and is killed");
            }
        }
        () = end.cancelled() => control.over(),
    }
    end.cancel();
    let _ = events.send(SandboxEvent::Gone);
}
