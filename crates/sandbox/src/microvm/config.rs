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

/// Settings of a [`MicrovmEngine`](super::MicrovmEngine).
#[derive(Debug, Clone)]
pub struct MicrovmConfig {
    /// Directory for images, templates of `/tmp`, and the VMs' own directories; made if missing. Nobody else's.
    pub state_dir: PathBuf,
    /// The guest kernel: an uncompressed ELF `vmlinux`.
    pub kernel: PathBuf,
    /// By what.
    pub accel: Accel,
    /// `qemu-system-x86_64`; `None`: looked for in PATH.
    pub qemu: Option<PathBuf>,
    /// `vhost-device-vsock`; `None`: looked for in PATH and among cargo's programs.
    pub vsock_device: Option<PathBuf>,
    /// The program that calls [`maybe_run_helper`](crate::process::maybe_run_helper) first of all; `None`: this one.
    pub helper: Option<PathBuf>,
    /// Where functions can connect to. Egress takes root.
    pub network: Network,
    /// Most VMs at once.
    pub max_sandboxes: u32,
    /// Memory that all VMs together can use, in MB. `None`: no bound but their own.
    pub memory_mb: Option<u64>,
    /// How long a VM may take from its start until its sandbox is made. One that takes longer is killed.
    pub boot_limit: Duration,
    /// How long its agent may take to answer. One that takes longer is killed.
    pub answer_limit: Duration,
}

impl MicrovmConfig {
    /// A thousand at most, no network. A VM boots within 20 seconds, or 2 minutes where it is emulated.
    pub fn new(state_dir: impl Into<PathBuf>, kernel: impl Into<PathBuf>, accel: Accel) -> Self {
        Self {
            state_dir: state_dir.into(),
            kernel: kernel.into(),
            accel,
            qemu: None,
            vsock_device: None,
            helper: None,
            network: Network::None,
            max_sandboxes: 1024,
            memory_mb: None,
            boot_limit: match accel {
                Accel::Kvm => Duration::from_secs(20),
                Accel::Tcg => Duration::from_secs(120),
            },
            // Within milliseconds; emulated, on a busy host, seconds. Less than the worker waits.
            answer_limit: Duration::from_secs(9),
        }
    }
}
