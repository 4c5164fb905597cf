//! QEMU's `microvm` machine: virtio by MMIO, no PCI, no firmware to speak of.
//!
//! vsock is a device in a process of its own, `vhost-device-vsock`, which speaks on Unix sockets as Firecracker does. For
//! that the guest's memory is a shared memory file.
//!
//! Pausing is SIGSTOP to QEMU. Its own `stop` would halt the guest's clocks as well, which then had to be set after each
//! pause; this way the guest finds that time has passed, as a frozen process does.
//!
//! A VM in waiting has a monitor, by which its drives are exchanged ([`super::qmp`]); it is closed when that is done.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use async_trait::async_trait;
use domain::SandboxId;
use guest::protocol::{During, Failure, Spawn};
use parking_lot::Mutex;
use rustix::process::Signal;

use super::config::{Accel, MicrovmConfig};
use super::confine::{DIRECTORY, FIRST_KEPT};
use super::launcher::Launch;
use super::machine::{Beside, Drive, Engine, Machine, VSOCK, Vm, no_snapshots};
use super::qmp::{self, Monitor};
use super::spawner::{Program, Running, Spawner};
use super::tree::Tree;
use super::tsc::Counter;
use crate::SandboxError;
use crate::process::error_of;

pub(super) const USE_KVM: &str = "use /dev/kvm (load the module kvm, or take a host with virtualisation)";
/// Of the vsock device's own protocol with QEMU, in the VM's directory.
const VHOST: &str = "vhost";
/// The address of every guest; each has a device, and so a world, of its own.
const GUEST: u32 = 3;
/// The vsock device makes its socket within milliseconds; on a busy machine, seconds.
const DEVICE_LIMIT: Duration = Duration::from_secs(20);
/// Numbers of the trees.
const QEMU: usize = 0;
const VSOCK_DEVICE: usize = 1;
/// The vsock device's path, where it sees itself.
const DEVICE: &str = "/vhost-device-vsock";
/// What the kernel is told. Its messages are for the case of failure only; `panic` ends the VM at once; `reboot=t` is the
/// way to restart that needs no device.
const KERNEL: &str = "console=ttyS0 quiet loglevel=3 panic=-1 reboot=t random.trust_cpu=on rdinit=/init";

/// Devices that a machine has room for: it has an interrupt for each, and no more of them without ACPI.
const DEVICES: usize = 8;
/// The guest's kernel gathers free memory for two seconds before it reports a part of it, a sixteenth of it at least.
const REPORT: Duration = Duration::from_secs(35);

/// Starts VMs with QEMU.
#[derive(Debug)]
pub struct Qemu {
    accel: Accel,
    program: PathBuf,
    kernel: PathBuf,
    initramfs: File,
    spawner: Spawner,
    version: String,
    kvm_group: Option<u32>,
    kernel_args: String,
    counter: Option<Counter>,
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
            // Not by `during`, which keeps the kernel's errors only.
            Accel::Kvm => Some(kvm().map_err(|source| SandboxError::Host { operation: USE_KVM.to_owned(), source })?),
        };
        let initramfs = memory_file(initramfs).during("make the initramfs").map_err(error_of)?;
        let trees = [Tree::of_qemu(&program), Tree::of(&device, Path::new(DEVICE))];
        let places = config.state_dir.join("trees");
        let place = |(number, tree): (usize, Result<Tree, Failure>)| {
            let place = places.join(number.to_string());
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&place);
            made.during(format!("make {}", place.display())).and(tree).map(|tree| (place, tree))
        };
        let trees = trees.into_iter().enumerate().map(place).collect::<Result<_, _>>().map_err(error_of)?;
        let spawner = Spawner::start(config.helper.clone(), trees)?;
        let kernel = config.kernel.clone();
        let kernel_args = config.kernel_args.clone();
        let counter = (config.accel == Accel::Tcg).then(Counter::start).flatten();
        let accel = config.accel;
        Ok(Self { accel, program, kernel, initramfs, spawner, version, kvm_group, kernel_args, counter })
    }

    /// What starts QEMU with this VM. The open files that it gets are, in this order: kernel, initramfs, drives, tap, monitor.
    /// `clock`: what the kernel is told of it.
    fn arguments(&self, vm: &Vm, clock: &str) -> Vec<String> {
        let (accel, cpu) = match self.accel {
            Accel::Kvm => ("kvm", "host"),
            // Its cache of translated code would grow to a quarter of the host's memory.
            Accel::Tcg => ("tcg,thread=multi,tb-size=128", "max"),
        };
        let memory = vm.memory_mb;
        let path = |number: usize| format!("/proc/self/fd/{}", FIRST_KEPT as usize + number);
        let mut command = Arguments(vec![self.program.to_string_lossy().into_owned()]);
        command.args(["-M", "microvm,acpi=off,isa-serial=on,memory-backend=memory", "-accel", accel, "-cpu", cpu]);
        command.arg("-object").arg(format!("memory-backend-memfd,id=memory,size={memory}M,share=on"));
        command.arg("-m").arg(format!("{memory}M")).arg("-smp").arg(vm.vcpus.to_string());
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]);
        command.args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
        command.args([
            "-kernel",
            path(0).as_str(),
            "-initrd",
            path(1).as_str(),
            "-append",
            format!("{KERNEL}{clock} {}", self.kernel_args).trim_end(),
        ]);
        for (number, drive) in vm.drives.iter().enumerate() {
            let file = path(number + 2);
            let node = qmp::node(number);
            if vm.blank {
                for node in qmp::medium(number, &file, drive.writable) {
                    command.arg("-blockdev").arg(node);
                }
            } else {
                let read_only = if drive.writable { "off" } else { "on" };
                command.arg("-blockdev").arg(format!(
                    "driver=file,node-name={node},filename={file},read-only={read_only},locking=off,discard=unmap"
                ));
            }
            let serial = self.drive(number);
            command.arg("-device").arg(format!("virtio-blk-device,drive={node},serial={serial}"));
        }
        if let Some(tap) = &vm.tap {
            let fd = FIRST_KEPT as usize + vm.drives.len() + 2;
            command.arg("-netdev").arg(format!("tap,id=net,fd={fd}"));
            command.arg("-device").arg(format!("virtio-net-device,netdev=net,mac={}", tap.mac));
        }
        if vm.blank {
            let fd = FIRST_KEPT as usize + vm.drives.len() + 2 + usize::from(vm.tap.is_some());
            command.arg("-chardev").arg(format!("socket,id=monitor,fd={fd}"));
            command.args(["-mon", "chardev=monitor,mode=control"]);
        }
        if has_balloon(vm) {
            // Never inflated: by it the guest reports which memory is free, and that is the host's again.
            command.args(["-device", "virtio-balloon-device,free-page-reporting=on,deflate-on-oom=on"]);
        }
        command.arg("-chardev").arg(format!("socket,id=vsock,path={VHOST}"));
        command.args(["-device", "vhost-user-vsock-device,chardev=vsock"]);
        command.0
    }

    fn program(&self, vm: &Vm, tree: usize, argv: Vec<String>, keep: Vec<OwnedFd>) -> Program {
        let env = vec![("RUST_LOG".to_owned(), "error".to_owned())];
        let kvm = (tree == QEMU).then_some(self.kvm_group).flatten();
        let launch = Launch {
            tree,
            spawn: Spawn { argv, env, cwd: DIRECTORY.to_owned() },
            directory: vm.directory.clone(),
            user: vm.user,
            more_group: kvm,
            devices: kvm.map(|_| "kvm".to_owned()).into_iter().collect(),
        };
        Program { launch, keep }
    }
}

/// Arguments under construction.
struct Arguments(Vec<String>);

impl Arguments {
    fn arg(&mut self, text: impl Into<String>) -> &mut Self {
        self.0.push(text.into());
        self
    }

    fn args<'a>(&mut self, texts: impl IntoIterator<Item = &'a str>) {
        self.0.extend(texts.into_iter().map(str::to_owned));
    }
}

#[async_trait]
impl Engine for Qemu {
    async fn boot(&self, vm: Vm) -> Result<Box<dyn Machine>, SandboxError> {
        let host = |operation: &str| {
            let operation = format!("{operation} for sandbox {}", vm.id);
            move |source: io::Error| SandboxError::Host { operation, source }
        };
        let vsock = format!("guest-cid={GUEST},uds-path={VSOCK},socket={VHOST}");
        let argv = vec![DEVICE.to_owned(), "--vm".to_owned(), vsock];
        let device = self.spawner.spawn(self.program(&vm, VSOCK_DEVICE, argv, Vec::new())).await?;
        enter(&vm, &device).map_err(host("put vhost-device-vsock into its cgroup"))?;
        wait_for_socket(&device, &vm.directory.join(VHOST)).await.map_err(host("wait for vhost-device-vsock"))?;

        let open = || -> io::Result<Vec<OwnedFd>> {
            let mut files = vec![File::open(&self.kernel)?.into(), self.initramfs.try_clone()?.into()];
            for drive in &vm.drives {
                files.push(drive.file.try_clone()?.into());
            }
            if let Some(tap) = &vm.tap {
                files.push(tap.open()?);
            }
            Ok(files)
        };
        let mut keep = open().map_err(host("open the kernel and the drives"))?;
        let mut monitor = None;
        if vm.blank {
            let (ours, theirs) = Monitor::pair().map_err(host("make a monitor"))?;
            keep.push(theirs);
            monitor = Some(ours);
        }
        let clock = match &self.counter {
            Some(counter) => counter.kernel_options().await,
            None => String::new(),
        };
        let qemu = self.spawner.spawn(self.program(&vm, QEMU, self.arguments(&vm, &clock), keep)).await?;
        enter(&vm, &qemu).map_err(host("put QEMU into its cgroup"))?;
        Ok(Box::new(QemuMachine { id: vm.id, qemu, device, monitor: Mutex::new(monitor), balloon: has_balloon(&vm) }))
    }

    async fn restore(&self, vm: Vm, _: &Path) -> Result<Box<dyn Machine>, SandboxError> {
        Err(no_snapshots(&self.version, vm.id))
    }

    fn exchanges_silently(&self) -> bool {
        true
    }

    fn snapshots(&self) -> Result<(), String> {
        // Its own word for it: the device is "unmigratable", and a snapshot is a migration into a file.
        Err("QEMU cannot keep a microVM in a snapshot, since its vhost-user-vsock device cannot be migrated; Firecracker can.".to_owned())
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
    /// Until its drives were exchanged.
    monitor: Mutex<Option<Monitor>>,
    balloon: bool,
}

#[async_trait]
impl Machine for QemuMachine {
    fn pause(&self) -> io::Result<()> {
        self.qemu.signal(Signal::STOP)
    }

    fn resume(&self) -> io::Result<()> {
        self.qemu.signal(Signal::CONT)
    }

    async fn exchange(&self, drives: Vec<Drive>, _: &Path) -> Result<(), SandboxError> {
        let monitor = self.monitor.lock().take();
        let exchanged = match monitor {
            Some(mut monitor) => monitor.exchange(&drives).await,
            None => Err(io::ErrorKind::Unsupported.into()),
        };
        exchanged.map_err(|source| {
            let operation = format!("give VM {} the drives of a function", self.id);
            SandboxError::Host { operation, source }
        })
    }

    async fn snapshot(&self, _: &Path, _: Beside) -> Result<(), SandboxError> {
        // Its memory is a shared file, its vsock device another process: neither is in a state that QEMU could save.
        Err(no_snapshots("QEMU", self.id))
    }

    fn gives_back(&self) -> Option<Duration> {
        self.balloon.then_some(REPORT)
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

/// Whether there is room for one beside drives, card and vsock.
fn has_balloon(vm: &Vm) -> bool {
    vm.drives.len() + usize::from(vm.tap.is_some()) + 1 < DEVICES
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

/// Where a program really is, since QEMU looks for its firmware from there; the error says where it comes from.
pub(super) fn find(name: &str, given: Option<&Path>, remedy: &str) -> Result<PathBuf, SandboxError> {
    let missing = |operation: String| SandboxError::Host { operation, source: io::ErrorKind::NotFound.into() };
    if let Some(given) = given {
        let found = given.canonicalize().ok().filter(|found| found.is_file());
        return found.ok_or_else(|| missing(format!("find {name} at {}, as configured ({remedy})", given.display())));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME").unwrap_or_else(|| OsString::from("/root"));
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/local/bin"), PathBuf::from("/usr/bin"), Path::new(&home).join(".cargo/bin")])
        .filter_map(|directory| directory.join(name).canonicalize().ok())
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
