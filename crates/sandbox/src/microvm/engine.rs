//! Makes sandboxes in VMs, and sees to it that nothing is left of them.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use guest::protocol::During;
use guest::vm::protocol::VERSION;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::boot::{Core, Origin};
use super::config::{Accel, EngineKind, MicrovmConfig};
use super::firecracker::Firecracker;
use super::images::Images;
use super::initramfs;
use super::machine::Engine;
use super::network::Outside;
use super::qemu::Qemu;
use super::waiting::Waiting;
use crate::api::{ProcessId, Restored, Sandbox, SandboxEngine, SandboxError, SandboxSpec};
use crate::process::cgroup::Hierarchy;
use crate::process::instance::Instance;
use crate::process::{Network, error_of, helper};

/// Makes sandboxes in microVMs. See [`super`].
pub struct MicrovmEngine {
    core: Arc<Core>,
    waiting: Arc<Waiting>,
    notes: Vec<String>,
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

    /// How many VMs wait for a function.
    pub fn waiting(&self) -> usize {
        self.waiting.count()
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
        let notes = notes(engine.as_ref(), &config, hierarchy.as_ref(), outside.as_deref(), privileged);
        let core = Arc::new(Core {
            boots: (config.accel == Accel::Tcg).then(|| Arc::new(Semaphore::new(processors))),
            config,
            engine,
            images,
            vms,
            instance: Arc::new(Mutex::new(instance)),
            group,
            privileged,
            outside,
            processors,
            claimed: Arc::default(),
            end: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let waiting = Waiting::start(Arc::clone(&core));
        Ok(Self { core, waiting, notes })
    }
}

#[async_trait]
impl SandboxEngine for MicrovmEngine {
    async fn create(&self, spec: SandboxSpec) -> Result<Box<dyn Sandbox>, SandboxError> {
        let sandbox = match self.waiting.take(&spec).await {
            Some(sandbox) => sandbox,
            None => {
                let kind = self.core.kind(&spec);
                self.waiting.make_room(kind).await;
                let booted = self.core.boot(spec.id, kind, Origin::New(&spec)).await?;
                self.core.begin(booted, &spec, Vec::new()).await?
            }
        };
        self.waiting.made();
        Ok(Box::new(sandbox))
    }

    fn keeps(&self) -> Result<String, String> {
        self.core.engine.snapshots()?;
        let resolv_conf = self.core.outside.as_ref().map(|outside| outside.resolv_conf()).unwrap_or_default();
        let (engine, group) = (self.core.engine.describe(), self.core.group.is_some());
        Ok(format!("{engine}; agent {VERSION}; {}; groups: {group}; {resolv_conf}", processor()))
    }

    async fn restore(
        &self,
        spec: SandboxSpec,
        snapshot: &Path,
        running: &[ProcessId],
    ) -> Result<Restored, SandboxError> {
        let kind = self.core.kind(&spec);
        self.waiting.make_room(kind).await;
        let booted = self.core.boot(spec.id, kind, Origin::Snapshot(&spec, snapshot)).await?;
        let (sandbox, running) = self.core.resume(booted, &spec, running).await?;
        Ok(Restored { sandbox: Box::new(sandbox), running })
    }

    fn describe(&self) -> Vec<String> {
        self.notes.clone()
    }

    async fn stop(&self) {
        self.core.end.cancel();
        self.core.tasks.close();
        self.core.tasks.wait().await;
        if let Some(outside) = &self.core.outside {
            outside.stop();
        }
        if let Some(group) = &self.core.group {
            // The next start would find it.
            let _ = group.remove();
        }
    }
}

impl Drop for MicrovmEngine {
    fn drop(&mut self) {
        self.core.end.cancel();
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
    if config.pool > 0 {
        notes.push(format!("{} booted microVMs wait for each kind of function in use", config.pool));
    }
    if config.accel == Accel::Tcg {
        notes.push("CPU shares are not enforced under software emulation".to_owned());
    }
    if !privileged {
        notes.push("without root, all VMs run as Emberbox's own user".to_owned());
    }
    notes
}

/// What a snapshot's processors were: one of another kind may lack what the guest uses.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find(|line| line.starts_with("model name"));
    name.unwrap_or("an unknown processor").to_owned()
}

/// What is there, another server left: the data directory is locked.
fn clear(vms: &Path) -> io::Result<()> {
    match fs::remove_dir_all(vms) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir_all(vms)
}
