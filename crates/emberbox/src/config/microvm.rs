//! `[microvm]`.

use std::path::PathBuf;

use serde::Deserialize;

/// How microVMs are made, where `[sandbox] isolation` asks for them.
#[derive(Deserialize, Debug, Clone, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Microvm {
    /// What runs them.
    pub engine: VmEngine,
    /// What executes their instructions.
    pub accel: Accel,
    /// How many booted VMs wait for a function, for each of the kinds last asked for.
    pub pool: usize,
    /// The guest kernel, an uncompressed `vmlinux`; `None`: `guest-kernel/vmlinux` in the data directory.
    pub kernel: Option<PathBuf>,
    /// What the guest kernel's command line has besides what it must.
    pub kernel_args: String,
    /// The program `firecracker`; `None`: from PATH.
    pub firecracker: Option<PathBuf>,
    /// The program `jailer`; `None`: from PATH.
    pub jailer: Option<PathBuf>,
    /// A CPU template, for Firecracker.
    pub cpu_template: Option<PathBuf>,
    /// The program `qemu-system-x86_64`; `None`: from PATH.
    pub qemu: Option<PathBuf>,
    /// The program `vhost-device-vsock`; `None`: from PATH.
    pub vsock_device: Option<PathBuf>,
}

impl Default for Microvm {
    fn default() -> Self {
        Self {
            engine: VmEngine::default(),
            accel: Accel::default(),
            pool: 1,
            kernel: None,
            kernel_args: String::new(),
            firecracker: None,
            jailer: None,
            cpu_template: None,
            qemu: None,
            vsock_device: None,
        }
    }
}

impl Microvm {
    /// All that may be relative to the file.
    pub fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let firecracker = [&mut self.firecracker, &mut self.jailer, &mut self.cpu_template];
        [&mut self.kernel, &mut self.qemu, &mut self.vsock_device].into_iter().chain(firecracker).flatten()
    }
}

/// `engine`.
#[derive(Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum VmEngine {
    /// Firecracker where one boots by it, or else QEMU.
    #[default]
    Auto,
    /// Firecracker, through its jailer.
    Firecracker,
    /// QEMU's machine `microvm`.
    Qemu,
}

/// `accel`.
#[derive(Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor.
    #[default]
    Kvm,
    /// Software emulation.
    Tcg,
}
