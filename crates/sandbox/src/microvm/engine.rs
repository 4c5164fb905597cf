//! Makes sandboxes in VMs, and sees to it that nothing is left of them.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use guest::protocol::{During, Uplink};
use guest::vm::protocol::{CONTROL_PORT, OUTPUT_PORT, Order, Resume, Start, VERSION, link_port};
use parking_lot::Mutex;
use rustix::rand::GetRandomFlags;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::config::{Accel, EngineKind, MicrovmConfig};
use super::control::Control;
use super::firecracker::Firecracker;
use super::images::Images;
use super::machine::{Drive, Engine, Machine, Vm};
use super::network::Outside;
use super::qemu::Qemu;
use super::sandbox::MicrovmSandbox;
use super::seat::{Seat, supervise};
use super::{initramfs, kept};
use crate::api::{
    Listener, Process, ProcessId, Restored, Sandbox, SandboxEngine, SandboxError, SandboxEvent, SandboxSpec,
};
use crate::process::cgroup::{Group, Hierarchy};
use crate::process::instance::Instance;
use crate::process::{Network, error_of, helper};

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
enum Origin<'a> {
    Boot,
    /// A snapshot, and the processes that ran in it.
    Snapshot(&'a Path, &'a [ProcessId]),
}

/// Makes sandboxes in microVMs. See [`super`].
pub struct MicrovmEngine {
    config: MicrovmConfig,
    engine: Box<dyn Engine>,
    images: Images,
    vms: PathBuf,
    instance: Arc<Mutex<Instance>>,
    /// The cgroup of all of them.
    group: Option<Group>,
    privileged: bool,
    /// Nothing where functions have loopback only.
    outside: Option<Arc<Outside>>,
    processors: usize,
    /// For emulated boots, which take a processor each: more at once would only time out together.
    boots: Option<Semaphore>,
    notes: Vec<String>,
    /// Kills all.
    end: CancellationToken,
    /// One task for each VM.
    tasks: TaskTracker,
}

impl MicrovmEngine {
    /// Finds what VMs need, and clears up what dead instances left. Within a tokio runtime.
    ///
    /// # Errors
    /// [`SandboxError::Host`] says what is missing on this host, and where to get it.
    pub async fn start(config: MicrovmConfig) -> Result<Self, SandboxError> {
        if initramfs::AGENT.is_empty() {
            let source = io::Error::other("this build of Emberbox has no agent for them: its build said why");
            return Err(SandboxError::Host { operation: "start microVMs".to_owned(), source });
        }
        let initramfs = initramfs::archive(initramfs::AGENT);
        let engine: Box<dyn Engine> = match config.engine {
            EngineKind::Qemu => Box::new(Qemu::new(&config, &initramfs)?),
            EngineKind::Firecracker => Box::new(Firecracker::new(&config, &initramfs).await?),
        };
        Self::with(engine, config)
    }

    /// With QEMU's machines, which can be "restored" from their snapshots once: the machine that a snapshot was taken of stands
    /// still until then, and goes on. For tests.
    ///
    /// # Errors
    /// As [`MicrovmEngine::start`].
    #[cfg(feature = "in-place")]
    pub fn start_in_place(config: MicrovmConfig) -> Result<Self, SandboxError> {
        let initramfs = initramfs::archive(initramfs::AGENT);
        let qemu = Qemu::new(&config, &initramfs)?;
        let engine = super::in_place::InPlace::new(qemu, config.state_dir.join("machines"));
        Self::with(Box::new(engine), config)
    }

    /// With the machines of this engine.
    pub(super) fn with(engine: Box<dyn Engine>, config: MicrovmConfig) -> Result<Self, SandboxError> {
        helper::raise_descriptor_limit();
        let privileged = rustix::process::geteuid().is_root();
        let vms = config.state_dir.join("vms");
        clear(&vms).during(format!("clear {}", vms.display())).map_err(error_of)?;
        let images = Images::open(&config.state_dir)?;
        let hierarchy = Hierarchy::detect().filter(|_| privileged);
        let mut warnings = Vec::new();
        let instance = Instance::claim(config.max_sandboxes, hierarchy.as_ref(), &mut warnings)
            .during("take numbers for sandboxes")
            .map_err(error_of)?;
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let group = hierarchy.as_ref().map(|hierarchy| hierarchy.instance(instance.number));
        if let Some(group) = &group {
            let limit = || config.memory_mb.map_or(Ok(()), |memory_mb| group.limit_memory(memory_mb));
            group.make().and_then(|()| limit()).during("make the cgroup of all sandboxes").map_err(error_of)?;
        }
        let outside = match &config.network {
            Network::None => None,
            Network::Egress(_) if !privileged => {
                let source = io::ErrorKind::PermissionDenied.into();
                let operation =
                    "connect microVMs to the network, which takes root (or `network = \"none\"`)".to_owned();
                return Err(SandboxError::Host { operation, source });
            }
            Network::Egress(egress) => Some(Arc::new(Outside::start(egress, instance.number).map_err(error_of)?)),
        };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            notes: notes(engine.as_ref(), &config, hierarchy.as_ref(), outside.as_deref(), privileged),
            boots: (config.accel == Accel::Tcg).then(|| Semaphore::new(processors)),
            config,
            engine,
            images,
            vms,
            instance: Arc::new(Mutex::new(instance)),
            group,
            privileged,
            outside,
            processors,
            end: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
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

    async fn kept_drives(
        &self,
        spec: &SandboxSpec,
        owner: Option<(u32, u32)>,
        snapshot: &Path,
    ) -> Result<Vec<Drive>, SandboxError> {
        let scratch = self.images.scratch(spec.ephemeral_mb, owner).await?;
        let (snapshot, count) = (snapshot.to_owned(), 2 + spec.mounts.len());
        let opened = tokio::task::spawn_blocking(move || kept::drives(&snapshot, count, scratch)).await;
        opened.map_err(io::Error::other).and_then(|drives| drives).map_err(|source| SandboxError::Host {
            operation: format!("open the drives of a snapshot for sandbox {}", spec.id),
            source,
        })
    }

    /// What the agent is told; the drives are in the order of [`MicrovmEngine::drives`].
    fn order(&self, spec: &SandboxSpec, uplink: Option<Uplink>) -> Order {
        let targets = spec.mounts.iter().enumerate();
        Order::Start(Start {
            memory: u64::from(spec.memory_mb) << 20,
            pids: PIDS,
            time: time(),
            seed: seed(),
            root: self.engine.drive(0),
            tmp: self.engine.drive(1 + spec.mounts.len()),
            mounts: targets.map(|(n, mount)| (self.engine.drive(1 + n), mount.target.clone())).collect(),
            hosts: helper::hosts_file(&spec.hosts),
            uplink,
            resolv_conf: self.outside.as_ref().map(|outside| outside.resolv_conf()).unwrap_or_default(),
            listen: spec.listen.clone(),
        })
    }

    /// Makes a sandbox; and, of one that was restored, the output of its processes.
    async fn make(
        &self,
        spec: SandboxSpec,
        origin: Origin<'_>,
    ) -> Result<(MicrovmSandbox, Vec<Process>), SandboxError> {
        let id = spec.id;
        let host = |operation: &str| {
            let operation = format!("{operation} for sandbox {id}");
            move |source: io::Error| SandboxError::Host { operation, source }
        };
        let seat = Seat::take(id, &self.instance, &self.vms, self.group.as_ref(), self.privileged);
        let mut seat = seat.ok_or_else(|| host("find a number")(io::ErrorKind::QuotaExceeded.into()))?;
        let drives = match origin {
            Origin::Boot => self.drives(&spec, seat.user).await?,
            Origin::Snapshot(kept, _) => self.kept_drives(&spec, seat.user, kept).await?,
        };
        let kept =
            drives.iter().map(Drive::try_clone).collect::<io::Result<Vec<_>>>().map_err(host("open the drives"))?;
        let memory_mb = spec.memory_mb + GUEST_MB + spec.memory_mb / GUEST_SHARE;
        let vcpus = (spec.vcpus.ceil() as usize).clamp(1, self.processors) as u32;
        // Held until it has booted.
        let _boot = match &self.boots {
            Some(boots) => Some(boots.acquire().await.map_err(|_| SandboxError::Gone(id))?),
            None => None,
        };
        let emulation = if self.config.accel == Accel::Tcg { EMULATION_MB } else { 0 };
        let host_mb = memory_mb + HOST_MB + emulation;
        if let Some(group) = &seat.group {
            // Its share of CPU only once it has booted: what a small function has would take seconds for that.
            let all = self.processors as f64;
            group.make().and_then(|()| group.limit(host_mb, all)).map_err(host("make the cgroup"))?;
        }
        seat.prepare().map_err(host("make the directory"))?;
        let listen = |port| seat.listen(port).map_err(host("listen"));
        let (control, outputs) = (listen(CONTROL_PORT)?, listen(OUTPUT_PORT)?);
        let outputs = tokio::net::UnixListener::from_std(outputs).map_err(host("listen"))?;
        let mut listeners = HashMap::new();
        for &port in &spec.listen {
            listeners.insert(port, Listener::Unix(listen(link_port(port))?));
        }
        let (mut tap, mut uplink) = (None, None);
        if let Some(outside) = &self.outside {
            let (its_tap, link, its_uplink) = outside.connect(seat.slot, seat.user.map(|(user, _)| user)).await?;
            (tap, uplink, seat.link) = (Some(its_tap), Some(its_uplink), Some(link));
        }
        let (directory, group) = (seat.directory.clone(), seat.group.clone());
        let vm = Vm { id, directory, user: seat.user, group: group.clone(), memory_mb, vcpus, tap, drives };
        let machine: Arc<dyn Machine> = match origin {
            Origin::Boot => self.engine.boot(vm).await?.into(),
            Origin::Snapshot(kept, _) => self.engine.restore(vm, kept).await?.into(),
        };

        // From here on the task clears up, whatever happens.
        let (end, gone) = (self.end.child_token(), CancellationToken::new());
        let ending = end.clone().drop_guard();
        self.tasks.spawn(supervise(Arc::clone(&machine), seat, end.clone(), gone.clone()));
        let (sender, events) = mpsc::unbounded_channel();
        let begun = tokio::select! {
            begun = tokio::time::timeout(self.config.boot_limit, self.begin(&spec, &origin, uplink, control, sender.clone())) => {
                let late = || io::Error::new(io::ErrorKind::TimedOut, format!("timed out after {:?}", self.config.boot_limit));
                begun.unwrap_or_else(|_| Err(late()))
            }
            () = end.cancelled() => Err(io::Error::other("it ended")),
        };
        let control = match begun {
            Ok(control) => Arc::new(control),
            Err(error) => {
                let text = match machine.console() {
                    console if console.is_empty() => format!("{error}; its console has nothing"),
                    console => format!("{error}; its console: {console}"),
                };
                drop(ending);
                gone.cancelled().await;
                return Err(host("boot a microVM")(io::Error::new(error.kind(), text)));
            }
        };
        // Their connections are there: they were made before the guest said that it goes on.
        let mut running = Vec::new();
        if let Origin::Snapshot(_, processes) = origin {
            for &id in processes {
                let accepted = tokio::time::timeout(self.config.answer_limit, outputs.accept()).await;
                let late = || io::ErrorKind::TimedOut.into();
                let (output, _) =
                    accepted.unwrap_or_else(|_| Err(late())).map_err(host("take the output of processes"))?;
                let output = output.into_std().map_err(host("take the output of processes"))?;
                running.push(Process { id, output: output.into() });
            }
        }
        if let (Accel::Kvm, Some(group)) = (self.config.accel, &group) {
            group.limit(host_mb, spec.vcpus).map_err(host("limit the CPU"))?;
        }
        self.tasks.spawn(listen_to(id, Arc::clone(&control), sender, end.clone()));
        let sandbox = MicrovmSandbox {
            id,
            machine,
            control,
            listeners: Mutex::new(listeners),
            outputs: tokio::sync::Mutex::new(outputs),
            events: Mutex::new(Some(events)),
            frozen: AtomicBool::new(false),
            drives: kept,
            end: ending.disarm(),
            answer_limit: self.config.answer_limit,
            gone,
        };
        Ok((sandbox, running))
    }

    /// From the kernel's first instruction to a sandbox that is ready.
    async fn begin(
        &self,
        spec: &SandboxSpec,
        origin: &Origin<'_>,
        uplink: Option<Uplink>,
        control: UnixListener,
        events: mpsc::UnboundedSender<SandboxEvent>,
    ) -> io::Result<Control> {
        // One connection: nobody listens there any more when a function could try.
        let (stream, _) = tokio::net::UnixListener::from_std(control)?.accept().await?;
        let control = Control::greet(stream, VERSION, events).await?;
        let order = match origin {
            Origin::Boot => self.order(spec, uplink),
            Origin::Snapshot(_, processes) => {
                let running: Vec<_> = processes.iter().map(|process| process.0).collect();
                control.expect(running.iter().copied());
                Order::Resume(Resume { time: time(), seed: seed(), uplink, running })
            }
        };
        let answered = control.ask(&order, self.config.boot_limit);
        let answer = tokio::select! {
            answer = answered => answer?,
            error = control.listen() => return Err(error),
        };
        answer
            .map(|_| control)
            .map_err(|failure| io::Error::other(format!("in the guest: {}: {}", failure.operation, failure.source())))
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

/// What a snapshot's processors were: one of another kind may lack what the guest uses.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find(|line| line.starts_with("model name"));
    name.unwrap_or("an unknown processor").to_owned()
}

/// Hears the agent until the end; a conversation that ends is the end of the VM.
async fn listen_to(
    id: domain::SandboxId,
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

#[async_trait]
impl SandboxEngine for MicrovmEngine {
    async fn create(&self, spec: SandboxSpec) -> Result<Box<dyn Sandbox>, SandboxError> {
        Ok(Box::new(self.make(spec, Origin::Boot).await?.0))
    }

    fn keeps(&self) -> Result<String, String> {
        self.engine.snapshots()?;
        let resolv_conf = self.outside.as_ref().map(|outside| outside.resolv_conf()).unwrap_or_default();
        let (engine, group) = (self.engine.describe(), self.group.is_some());
        Ok(format!("{engine}; agent {VERSION}; {}; groups: {group}; {resolv_conf}", processor()))
    }

    async fn restore(
        &self,
        spec: SandboxSpec,
        snapshot: &Path,
        running: &[ProcessId],
    ) -> Result<Restored, SandboxError> {
        let (sandbox, running) = self.make(spec, Origin::Snapshot(snapshot, running)).await?;
        Ok(Restored { sandbox: Box::new(sandbox), running })
    }

    fn describe(&self) -> Vec<String> {
        self.notes.clone()
    }

    async fn stop(&self) {
        self.end.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        if let Some(outside) = &self.outside {
            outside.stop();
        }
        if let Some(group) = &self.group {
            // The next start would find it.
            let _ = group.remove();
        }
    }
}

impl Drop for MicrovmEngine {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

fn notes(
    engine: &dyn Engine,
    config: &MicrovmConfig,
    hierarchy: Option<&Hierarchy>,
    outside: Option<&Outside>,
    privileged: bool,
) -> Vec<String> {
    let mut notes = vec![engine.describe(), format!("guest kernel {}", config.kernel.display())];
    match outside {
        Some(outside) => notes.extend(outside.notes()),
        None => notes.push("network: none, functions have loopback only".to_owned()),
    }
    notes.push(match hierarchy {
        Some(hierarchy) => hierarchy.describe(),
        None => "no cgroups: a VM's memory is limited by its size, its CPU by the number of its processors".to_owned(),
    });
    if config.accel == Accel::Tcg {
        notes.push("CPU shares are not enforced under software emulation".to_owned());
    }
    if !privileged {
        notes.push("without root, all VMs run as Emberbox's own user".to_owned());
    }
    notes
}

/// What is there, another server left: the data directory is locked.
fn clear(vms: &Path) -> io::Result<()> {
    match fs::remove_dir_all(vms) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir_all(vms)
}
