//! What an operator can choose about microVMs.

use std::path::PathBuf;
use std::time::Duration;

use crate::process::Network;

/// What executes a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The CPU, by `/dev/kvm`.
    Kvm,
    /// A program: any host can, ten to thirty times slower. For tests, and where nothing else works.
    Tcg,
}

/// The program that runs VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// QEMU's machine `microvm`, with either [`Accel`].
    Qemu,
    /// Firecracker, by its jailer. Takes root and [`Accel::Kvm`].
    Firecracker,
}

/// What concerns Firecracker only.
#[derive(Debug, Clone)]
pub struct FirecrackerConfig {
    /// The release program `firecracker`; `None`: looked for in PATH.
    pub program: Option<PathBuf>,
    /// `jailer`, of the same release; `None`: looked for in PATH.
    pub jailer: Option<PathBuf>,
    /// A CPU template, Firecracker's JSON: which features of the processor guests see. `None`: all.
    pub cpu_template: Option<PathBuf>,
    /// For each disk of a VM.
    pub disk: Rate,
    /// For its network card, each way; operations are frames.
    pub network: Rate,
}

/// What a VM may use of something of the host's, so that one cannot have all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bytes per second; of a disk, read and written together.
    pub bytes: u64,
    /// Once, at first, so many bytes more: for what a function's start reads.
    pub burst: u64,
    /// Operations per second.
    pub operations: u64,
}

impl Default for FirecrackerConfig {
    /// Programs from PATH. A disk has 256 MiB and 10 000 operations per second, and another GiB at first: no function's
    /// start meets a limit, and a host's disk has room for several that try. A network card has a gigabit.
    fn default() -> Self {
        let disk = Rate { bytes: 256 << 20, burst: 1 << 30, operations: 10_000 };
        let network = Rate { bytes: 125_000_000, burst: 64 << 20, operations: 100_000 };
        Self { program: None, jailer: None, cpu_template: None, disk, network }
    }
}

/// Settings of a [`MicrovmEngine`](super::MicrovmEngine).
#[derive(Debug, Clone)]
pub struct MicrovmConfig {
    /// Directory for images, templates of `/tmp`, and the VMs' own directories; made if missing. Nobody else's.
    pub state_dir: PathBuf,
    /// The guest kernel: an uncompressed ELF `vmlinux`.
    pub kernel: PathBuf,
    /// What runs them.
    pub engine: EngineKind,
    /// By what.
    pub accel: Accel,
    /// For [`EngineKind::Firecracker`].
    pub firecracker: FirecrackerConfig,
    /// What the guest kernel's command line has besides what it must: the last word counts.
    pub kernel_args: String,
    /// `qemu-system-x86_64`; `None`: looked for in PATH.
    pub qemu: Option<PathBuf>,
    /// `vhost-device-vsock`; `None`: looked for in PATH and among cargo's programs.
    pub vsock_device: Option<PathBuf>,
    /// The program that calls [`maybe_run_helper`](crate::process::maybe_run_helper) first of all; `None`: this one.
    pub helper: Option<PathBuf>,
    /// Where functions can connect to. Egress takes root.
    pub network: Network,
    /// How many booted VMs wait for a function, for each of the [`POOL_KINDS`](super::POOL_KINDS) kinds (memory, processors,
    /// number of disks) last asked for. They count among `max_sandboxes` and in `memory_mb`, but give way.
    pub pool: usize,
    /// A kind that nobody asked for in this time has none waiting any more.
    pub pool_expiry: Duration,
    /// Most VMs at once.
    pub max_sandboxes: u32,
    /// Memory that all VMs together can use, in MB. `None`: no bound but their own.
    pub memory_mb: Option<u64>,
    /// How long a VM may take from its start until its sandbox is made. One that takes longer is killed.
    pub boot_limit: Duration,
    /// A VM that was frozen for so long gives back what memory it does not use.
    pub rest_after: Duration,
    /// How long its agent may take to answer. One that takes longer is killed.
    pub answer_limit: Duration,
}

impl MicrovmConfig {
    /// QEMU; a thousand at most, none waiting, no network. A VM boots within 20 seconds, or 2 minutes where it is emulated.
    pub fn new(state_dir: impl Into<PathBuf>, kernel: impl Into<PathBuf>, accel: Accel) -> Self {
        Self {
            state_dir: state_dir.into(),
            kernel: kernel.into(),
            engine: EngineKind::Qemu,
            accel,
            firecracker: FirecrackerConfig::default(),
            kernel_args: String::new(),
            qemu: None,
            vsock_device: None,
            helper: None,
            network: Network::None,
            pool: 0,
            pool_expiry: Duration::from_secs(300),
            max_sandboxes: 1024,
            memory_mb: None,
            boot_limit: match accel {
                Accel::Kvm => Duration::from_secs(20),
                Accel::Tcg => Duration::from_secs(120),
            },
            rest_after: Duration::from_secs(10),
            // Within milliseconds; emulated, on a busy host, seconds. Less than the worker waits.
            answer_limit: Duration::from_secs(9),
        }
    }
}
