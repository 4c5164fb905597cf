//! QEMU's `microvm` machine: virtio by MMIO, no PCI, no firmware to speak of.
//!
//! vsock is a device in a process of its own, `vhost-device-vsock`, which speaks on Unix sockets as Firecracker does. For
//! that the guest's memory is a shared memory file.
//!
//! Pausing is SIGSTOP to QEMU. Its own `stop` would halt the guest's clocks as well, which then had to be set after each
//! pause; this way the guest finds that time has passed, as a frozen process does.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use async_trait::async_trait;
use domain::SandboxId;
use guest::protocol::During;
use rustix::process::Signal;

use super::config::{Accel, MicrovmConfig};
use super::machine::{Engine, Machine, VSOCK, Vm, no_snapshots};
use super::spawner::{Program, Running, Spawner};
use crate::SandboxError;
use crate::process::error_of;

/// Of the vsock device's own protocol with QEMU, in the VM's directory.
const VHOST: &str = "vhost";
/// The address of every guest; each has a device, and so a world, of its own.
const GUEST: u32 = 3;
/// The vsock device makes its socket within milliseconds; on a busy machine, seconds.
const DEVICE_LIMIT: Duration = Duration::from_secs(20);
/// What the kernel is told. Its messages are for the case of failure only; `panic` ends the VM at once; `reboot=t` is the
/// way to restart that needs no device.
const KERNEL: &str = "console=ttyS0 quiet loglevel=3 panic=-1 reboot=t random.trust_cpu=on rdinit=/init";

/// Starts VMs with QEMU.
#[derive(Debug)]
pub struct Qemu {
    accel: Accel,
    program: PathBuf,
    device: PathBuf,
    kernel: PathBuf,
    initramfs: File,
    spawner: Spawner,
    version: String,
    kvm_group: Option<u32>,
    kernel_args: String,
}

impl Qemu {
    /// Finds the programs and the kernel.
    ///
    /// # Errors
    /// What is missing, and where it comes from.
    pub fn new(config: &MicrovmConfig, initramfs: &[u8]) -> Result<Self, SandboxError> {
        let program = find("qemu-system-x86_64", config.qemu.as_deref(), "apt-get install qemu-system-x86")?;
        let device = find(
            "vhost-device-vsock",
            config.vsock_device.as_deref(),
            "cargo install vhost-device-vsock --version 0.3.0 --locked",
        )?;
        check_kernel(&config.kernel)?;
        let output = Command::new(&program).arg("--version").output().during(format!("run {}", program.display()));
        let output = output.map_err(error_of)?;
        let version = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
        let kvm_group = match config.accel {
            Accel::Tcg => None,
            Accel::Kvm => Some(kvm().during("use /dev/kvm (load the module kvm, or take a host with virtualisation)"))
                .transpose()
                .map_err(error_of)?,
        };
        let initramfs = memory_file(initramfs).during("make the initramfs").map_err(error_of)?;
        let spawner = Spawner::start().during("start a thread").map_err(error_of)?;
        let kernel = config.kernel.clone();
        let kernel_args = format!("{KERNEL} {}", config.kernel_args);
        Ok(Self { accel: config.accel, program, device, kernel, initramfs, spawner, version, kvm_group, kernel_args })
    }

    /// QEMU with this VM. `kept`: the open files that it gets, in the order kernel, initramfs, drives.
    fn command(&self, vm: &Vm, kept: &[OwnedFd]) -> Command {
        let (accel, cpu) = match self.accel {
            Accel::Kvm => ("kvm", "host"),
            // Its cache of translated code would grow to a quarter of the host's memory.
            Accel::Tcg => ("tcg,thread=multi,tb-size=128", "max"),
        };
        let memory = vm.memory_mb;
        let path = |number: usize| format!("/proc/self/fd/{}", kept[number].as_raw_fd());
        let mut command = Command::new(&self.program);
        command.env_clear().current_dir(&vm.directory);
        command.args(["-M", "microvm,acpi=off,isa-serial=on,memory-backend=memory", "-accel", accel, "-cpu", cpu]);
        command.arg("-object").arg(format!("memory-backend-memfd,id=memory,size={memory}M,share=on"));
        command.arg("-m").arg(format!("{memory}M")).arg("-smp").arg(vm.vcpus.to_string());
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]);
        command.args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
        command.args(["-kernel", &path(0), "-initrd", &path(1), "-append", self.kernel_args.trim_end()]);
        for (number, drive) in vm.drives.iter().enumerate() {
            let read_only = if drive.writable { "off" } else { "on" };
            let file = path(number + 2);
            command.arg("-blockdev").arg(format!(
                "driver=file,node-name=d{number},filename={file},read-only={read_only},locking=off,discard=unmap"
            ));
            let serial = self.drive(number);
            command.arg("-device").arg(format!("virtio-blk-device,drive=d{number},serial={serial}"));
        }
        command.arg("-chardev").arg(format!("socket,id=vsock,path={VHOST}"));
        command.args(["-device", "vhost-user-vsock-device,chardev=vsock"]);
        command
    }
}

#[async_trait]
impl Engine for Qemu {
    async fn boot(&self, vm: Vm) -> Result<Box<dyn Machine>, SandboxError> {
        let host = |operation: &str| {
            let operation = format!("{operation} for sandbox {}", vm.id);
            move |source: io::Error| SandboxError::Host { operation, source }
        };
        let mut command = Command::new(&self.device);
        command.env_clear().env("RUST_LOG", "error").current_dir(&vm.directory);
        command.arg("--vm").arg(format!("guest-cid={GUEST},uds-path={VSOCK},socket={VHOST}"));
        let program = Program { command, keep: Vec::new(), user: vm.user, extra_group: None };
        let device = self.spawner.spawn(program).await.map_err(host("start vhost-device-vsock"))?;
        enter(&vm, &device).map_err(host("put vhost-device-vsock into its cgroup"))?;
        wait_for_socket(&device, &vm.directory.join(VHOST)).await.map_err(host("wait for vhost-device-vsock"))?;

        let open = || -> io::Result<Vec<OwnedFd>> {
            let mut files = vec![File::open(&self.kernel)?.into(), self.initramfs.try_clone()?.into()];
            for drive in &vm.drives {
                files.push(drive.file.try_clone()?.into());
            }
            Ok(files)
        };
        let keep = open().map_err(host("open the kernel and the drives"))?;
        let command = self.command(&vm, &keep);
        let program = Program { command, keep, user: vm.user, extra_group: self.kvm_group };
        let qemu = self.spawner.spawn(program).await.map_err(host("start QEMU"))?;
        enter(&vm, &qemu).map_err(host("put QEMU into its cgroup"))?;
        Ok(Box::new(QemuMachine { id: vm.id, qemu, device }))
    }

    async fn restore(&self, vm: Vm, _: &Path) -> Result<Box<dyn Machine>, SandboxError> {
        Err(no_snapshots(&self.version, vm.id))
    }

    fn drive(&self, number: usize) -> String {
        format!("drive{number}")
    }

    fn describe(&self) -> String {
        let by = match self.accel {
            Accel::Kvm => "KVM",
            Accel::Tcg => "software emulation, which is slow: for tests",
        };
        format!("microVMs by {} ({by})", self.version)
    }
}

/// QEMU and its vsock device.
#[derive(Debug)]
struct QemuMachine {
    id: SandboxId,
    qemu: Running,
    device: Running,
}

#[async_trait]
impl Machine for QemuMachine {
    fn pause(&self) -> io::Result<()> {
        self.qemu.signal(Signal::STOP)
    }

    fn resume(&self) -> io::Result<()> {
        self.qemu.signal(Signal::CONT)
    }

    async fn snapshot(&self, _: &Path) -> Result<(), SandboxError> {
        // Its memory is a shared file, its vsock device another process: neither is in a state that QEMU could save.
        Err(no_snapshots("QEMU", self.id))
    }

    fn kill(&self) {
        for running in [&self.qemu, &self.device] {
            if let Err(error) = running.signal(Signal::KILL) {
                tracing::error!(sandbox = %self.id, %error, "cannot kill a process of a microVM");
            }
        }
    }

    async fn ended(&self) {
        // Either is of no use without the other.
        tokio::select! {
            () = self.qemu.ended() => {}
            () = self.device.ended() => {}
        }
        self.kill();
        tokio::join!(self.qemu.ended(), self.device.ended());
    }

    fn console(&self) -> String {
        let (qemu, device) = (self.qemu.console(), self.device.console());
        format!("{}\n{}", qemu.trim(), device.trim()).trim().to_owned()
    }
}

fn enter(vm: &Vm, running: &Running) -> io::Result<()> {
    // When memory is short on the host, it goes before anything else.
    let _ = std::fs::write(format!("/proc/{}/oom_score_adj", running.pid()), "500");
    vm.group.as_ref().map_or(Ok(()), |group| group.add(running.pid()))
}

async fn wait_for_socket(device: &Running, path: &Path) -> io::Result<()> {
    let made = async {
        while !path.symlink_metadata().is_ok_and(|socket| socket.file_type().is_socket()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::select! {
        () = made => Ok(()),
        () = device.ended() => Err(io::Error::other(format!("it ended: {}", device.console().trim()))),
        () = tokio::time::sleep(DEVICE_LIMIT) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Where a program is; the error says where it comes from.
pub(super) fn find(name: &str, given: Option<&Path>, remedy: &str) -> Result<PathBuf, SandboxError> {
    let missing = |operation: String| SandboxError::Host { operation, source: io::ErrorKind::NotFound.into() };
    if let Some(given) = given {
        let found = given.is_file().then(|| given.to_owned());
        return found.ok_or_else(|| missing(format!("find {name} at {}, as configured ({remedy})", given.display())));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME").unwrap_or_else(|| OsString::from("/root"));
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/local/bin"), PathBuf::from("/usr/bin"), Path::new(&home).join(".cargo/bin")])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| missing(format!("find {name}, which microVMs need ({remedy})")))
}

pub(super) fn check_kernel(kernel: &Path) -> Result<(), SandboxError> {
    let mut magic = [0; 4];
    let read = File::open(kernel).and_then(|mut file| io::Read::read_exact(&mut file, &mut magic));
    read.and_then(|()| {
        let elf = magic == *b"\x7fELF";
        elf.then_some(()).ok_or_else(|| io::Error::other("it is not an uncompressed ELF file, a `vmlinux`"))
    })
    .map_err(|source| SandboxError::Host {
        operation: format!("use the guest kernel {} (`emberbox image kernel` makes one)", kernel.display()),
        source,
    })
}

/// The group that may use KVM.
fn kvm() -> io::Result<u32> {
    let device = File::options().read(true).write(true).open("/dev/kvm")?;
    let metadata = device.metadata()?;
    // QEMU runs as a user of its own; root's group would give it more than this device.
    let usable = metadata.gid() != 0 && metadata.mode() & 0o060 == 0o060;
    if rustix::process::geteuid().is_root() && !usable {
        return Err(io::Error::other("no group but root's may use it: chgrp kvm /dev/kvm && chmod 660 /dev/kvm"));
    }
    Ok(metadata.gid())
}

/// A file without a name, readable by everybody who has it.
fn memory_file(contents: &[u8]) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create("initramfs", rustix::fs::MemfdFlags::CLOEXEC)?);
    io::Write::write_all(&mut &file, contents)?;
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o444))?;
    Ok(file)
}
