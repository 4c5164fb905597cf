//! Firecracker, in the jail that its own jailer makes: a user of its own, a root with nothing but the VM's files, PID and
//! network namespaces of its own, a cgroup, and the system call filters that Firecracker brings.
//!
//! A jail's files are hard links: to the kernel, the initramfs, the images (which its user can only read), the disk for
//! `/tmp`, and the sockets on which the host listens for the guest. All are below the engine's state directory, which is
//! therefore on one file system; the kernel alone may be elsewhere.
//!
//! Pausing is SIGSTOP, as with [`super::qemu`]: one system call, and the guest finds that time has passed. The API's
//! pause is for snapshots, which take the API.
//!
//! Unlike QEMU, Firecracker outlives a server that is killed, since its jailer has let go of it by then; its guest ends
//! when its agent finds the server's end of vsock closed, and whatever does not, the next start removes.

#[cfg(test)]
mod tests;

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::firecracker::api::{
    Action, BootSource, CacheType, Drive, DriveUpdate, HugePages, IoEngine, LogLevel, MachineConfig, MemoryBackend,
    MemoryBackendType, NetworkInterface, RateLimiter, SnapshotCreate, SnapshotLoad, SnapshotType, TokenBucket, Vsock,
};
use ::firecracker::{CgroupVersion, CpuConfig, Error, Jail, JailSpec, Jailer, JailerConfig, Place, Vmm};
use async_trait::async_trait;
use domain::SandboxId;
use rustix::fs::StatVfsMountFlags;

use super::config::{Accel, MicrovmConfig, Rate};
use super::machine::{self, Beside, Engine, Machine, VSOCK, Vm};
use super::network::{self, TAP};
use super::qemu::{USE_KVM, check_kernel, find};
use crate::SandboxError;

/// The address of every guest; each has a vsock device, and so a world, of its own.
const GUEST: u32 = 3;
/// What is kept of a console, in bytes: as with QEMU.
const CONSOLE: usize = 16 << 10;
/// The most that Firecracker gives a VM.
const MOST_VCPUS: u32 = 32;
/// As with QEMU; but the way to restart is the one that Firecracker takes for the end.
const KERNEL: &str = "console=ttyS0 quiet loglevel=3 panic=-1 reboot=k random.trust_cpu=on rdinit=/init";
/// Names of a snapshot's files, in its directory and in jails.
const STATE: &str = "state";
const MEMORY: &str = "memory";
/// And in the jail where it is taken, which has the former if it was restored itself.
const TAKEN: [(&str, &str); 2] = [("state.new", STATE), ("memory.new", MEMORY)];
const REMEDY: &str = "unpack a release of https://github.com/firecracker-microvm/firecracker/releases into /usr/local/bin, \
                      as firecracker and jailer";

/// Starts VMs with Firecracker.
#[derive(Debug)]
pub struct Firecracker {
    jailer: Jailer,
    kernel: PathBuf,
    initramfs: PathBuf,
    boot_args: String,
    cpu: Option<CpuConfig>,
    disk: RateLimiter,
    network: RateLimiter,
}

/// What Firecracker is told of a VM.
struct Devices {
    machine: MachineConfig,
    /// Of each drive.
    writable: Vec<bool>,
    /// Of the network card, if there is one.
    mac: Option<String>,
}

impl Devices {
    fn of(vm: &Vm) -> Self {
        let machine = MachineConfig {
            vcpu_count: vm.vcpus.clamp(1, MOST_VCPUS) as u8,
            mem_size_mib: vm.memory_mb,
            smt: false,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        };
        let writable = vm.drives.iter().map(|drive| drive.writable).collect();
        Self { machine, writable, mac: vm.tap.as_ref().map(|tap| tap.mac.clone()) }
    }
}

impl Firecracker {
    /// Finds the programs and the kernel, and removes what a dead server left of its VMs.
    ///
    /// # Errors
    /// What is missing, and where it comes from; [`Error::Unsuitable`] names a version that is too old.
    pub async fn new(config: &MicrovmConfig, initramfs: &[u8]) -> Result<Self, SandboxError> {
        if config.accel != Accel::Kvm {
            return Err(unsupported("it cannot emulate; software emulation is QEMU's (`engine = \"qemu\"`)"));
        }
        if !rustix::process::geteuid().is_root() {
            return Err(unsupported("its jailer takes root; QEMU does not (`engine = \"qemu\"`)"));
        }
        let own = &config.firecracker;
        let program = find("firecracker", own.program.as_deref(), REMEDY)?;
        let jailer = find("jailer", own.jailer.as_deref(), REMEDY)?;
        check_kernel(&config.kernel)?;
        File::options().read(true).write(true).open("/dev/kvm").map_err(during(USE_KVM))?;
        let cpu = own.cpu_template.as_deref().map(cpu_template).transpose()?;
        fs::create_dir_all(&config.state_dir)
            .and_then(|()| check_mount(rustix::fs::statvfs(&config.state_dir)?.f_flag))
            .map_err(during(format!("make jails in {}", config.state_dir.display())))?;
        let config_of_jailer = JailerConfig {
            firecracker: program,
            jailer,
            directory: config.state_dir.join("jails"),
            cgroup_version: CgroupVersion::of_host(),
            // Not used: the cgroup of a VM is that of its sandbox, which its processes are put into.
            parent_cgroup: "emberbox-jails".to_owned(),
        };
        let opened = Jailer::open(config_of_jailer).await;
        let (jailer, swept) = opened.map_err(|error| failed("prepare Firecracker's jails".to_owned(), error))?;
        if !swept.jails.is_empty() {
            let (jails, processes) = (swept.jails.len(), swept.processes);
            tracing::info!("removed {jails} jails of a server that was killed, and {processes} processes in them");
        }
        let path = config.state_dir.join("initramfs.cpio");
        write_anew(&path, initramfs).map_err(during(format!("write {}", path.display())))?;
        Ok(Self {
            jailer,
            kernel: config.kernel.clone(),
            initramfs: path,
            boot_args: format!("{KERNEL} {}", config.kernel_args).trim_end().to_owned(),
            cpu,
            disk: limiter(own.disk),
            network: limiter(own.network),
        })
    }

    /// A jail with the files of this VM, and these besides; and the network namespace for it, to be kept until the start.
    async fn jail(&self, vm: Vm, more: Vec<(PathBuf, &'static str)>) -> Result<(Jail, OwnedFd), SandboxError> {
        let jailer = self.jailer.clone();
        let made = tokio::task::spawn_blocking(move || {
            let what = format!("make the jail of sandbox {}", vm.id);
            let host = |source| SandboxError::Host { operation: what.clone(), source };
            let (uid, gid) = vm.user.ok_or_else(|| host(io::ErrorKind::PermissionDenied.into()))?;
            // Without one, the jailer would leave Firecracker in the host's.
            let network = match vm.tap {
                Some(tap) => tap.namespace,
                None => network::nothing().map_err(host)?,
            };
            let netns = format!("/proc/{}/fd/{}", std::process::id(), network.as_raw_fd());
            let spec = JailSpec {
                netns: Some(netns.into()),
                console_bytes: CONSOLE,
                // A warning at every start would only hide what the guest said.
                log_level: Some(LogLevel::Error),
                ..JailSpec::new(jail_id(vm.id), uid, gid)
            };
            let fill = |jail: &Jail| -> Result<(), Error> {
                for (path, name) in &more {
                    jail.add(path, name, Place::Link)?;
                }
                for (number, drive) in vm.drives.iter().enumerate() {
                    jail.add_file(&drive.file, &drive_id(number))?;
                }
                Ok(())
            };
            let jail = jailer.jail(spec).and_then(|jail| fill(&jail).map(|()| jail));
            let jail = jail.map_err(|error| failed(what.clone(), error))?;
            for name in sockets(&vm.directory).map_err(host)? {
                let linked = jail.add(&vm.directory.join(&name), &name, Place::Link);
                linked.map_err(|error| failed(what.clone(), error))?;
            }
            Ok((jail, network))
        });
        made.await.unwrap_or_else(|error| {
            Err(SandboxError::Host { operation: "make a jail".to_owned(), source: io::Error::other(error) })
        })
    }

    /// Starts Firecracker, which has no guest yet, in a jail.
    async fn start(&self, vm: Vm, more: Vec<(PathBuf, &'static str)>) -> Result<FirecrackerMachine, SandboxError> {
        let (id, group) = (vm.id, vm.group.clone());
        let (jail, network) = self.jail(vm, more).await?;
        let vmm = jail.start().await.map_err(|error| failed(format!("start Firecracker for sandbox {id}"), error))?;
        drop(network);
        let pid = vmm.pid();
        // When memory is short on the host, it goes before anything else.
        let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), "500");
        // Before the guest's memory is there, and its processors' threads.
        group.map_or(Ok(()), |group| group.add(pid.unsigned_abs())).map_err(|source| SandboxError::Host {
            operation: format!("put Firecracker into its cgroup for sandbox {id}"),
            source,
        })?;
        Ok(FirecrackerMachine { id, vmm })
    }

    async fn configure(&self, vmm: &Vmm, devices: &Devices) -> Result<(), Error> {
        let api = vmm.api();
        api.put_machine_config(&devices.machine).await?;
        if let Some(cpu) = &self.cpu {
            api.put_cpu_config(cpu).await?;
        }
        let source = BootSource {
            kernel_image_path: "kernel".to_owned(),
            initrd_path: Some("initramfs".to_owned()),
            boot_args: Some(self.boot_args.clone()),
        };
        api.put_boot_source(&source).await?;
        // One after the other: the guest names them in the order of their attachment.
        for (number, &writable) in devices.writable.iter().enumerate() {
            let drive = Drive {
                drive_id: drive_id(number),
                path_on_host: drive_id(number),
                is_root_device: false,
                is_read_only: !writable,
                partuuid: None,
                // Nobody reads a disk when its VM is gone.
                cache_type: CacheType::Unsafe,
                io_engine: IoEngine::Sync,
                rate_limiter: Some(self.disk),
            };
            api.put_drive(&drive).await?;
        }
        if let Some(mac) = &devices.mac {
            let interface = NetworkInterface {
                iface_id: "eth0".to_owned(),
                host_dev_name: TAP.to_owned(),
                guest_mac: Some(mac.clone()),
                rx_rate_limiter: Some(self.network),
                tx_rate_limiter: Some(self.network),
            };
            api.put_network_interface(&interface).await?;
        }
        api.put_vsock(&Vsock { guest_cid: GUEST, uds_path: VSOCK.to_owned() }).await?;
        api.act(Action::InstanceStart).await
    }
}

#[async_trait]
impl Engine for Firecracker {
    async fn boot(&self, vm: Vm) -> Result<Box<dyn Machine>, SandboxError> {
        let devices = Devices::of(&vm);
        let files = vec![(self.kernel.clone(), "kernel"), (self.initramfs.clone(), "initramfs")];
        let machine = self.start(vm, files).await?;
        let done = self.configure(&machine.vmm, &devices).await;
        machine.started("boot", done).await
    }

    async fn restore(&self, vm: Vm, snapshot: &Path) -> Result<Box<dyn Machine>, SandboxError> {
        let files = [STATE, MEMORY].map(|name| (snapshot.join(name), name)).to_vec();
        let machine = self.start(vm, files).await?;
        let load = SnapshotLoad {
            snapshot_path: STATE.to_owned(),
            mem_backend: MemoryBackend { backend_type: MemoryBackendType::File, backend_path: MEMORY.to_owned() },
            enable_diff_snapshots: false,
            resume_vm: true,
            network_overrides: Vec::new(),
        };
        let done = machine.vmm.api().load_snapshot(&load).await;
        machine.started("restore", done).await
    }

    fn exchanges_silently(&self) -> bool {
        false
    }

    fn snapshots(&self) -> Result<(), String> {
        Ok(())
    }

    fn drive(&self, number: usize) -> String {
        // Firecracker gives a disk a serial number of its own choice.
        device(number)
    }

    fn describe(&self) -> String {
        format!("microVMs by Firecracker {}, jailed (KVM)", self.jailer.version())
    }
}

/// A Firecracker in its jail.
#[derive(Debug)]
struct FirecrackerMachine {
    id: SandboxId,
    vmm: Vmm,
}

impl FirecrackerMachine {
    /// Itself if all went well; or else nothing, and why.
    async fn started(self, verb: &str, done: Result<(), Error>) -> Result<Box<dyn Machine>, SandboxError> {
        let Err(error) = done else { return Ok(Box::new(self)) };
        self.kill();
        self.ended().await;
        let console = match self.console() {
            console if console.is_empty() => console,
            console => format!("; its console: {console}"),
        };
        Err(SandboxError::Host {
            operation: format!("{verb} a microVM for sandbox {}", self.id),
            source: io::Error::other(format!("{error}{console}")),
        })
    }
}

#[async_trait]
impl Machine for FirecrackerMachine {
    fn pause(&self) -> io::Result<()> {
        self.vmm.freeze()
    }

    fn resume(&self) -> io::Result<()> {
        self.vmm.thaw()
    }

    async fn exchange(&self, drives: Vec<machine::Drive>, directory: &Path) -> Result<(), SandboxError> {
        let exchanged = async {
            let jail = self.vmm.jail();
            for name in
                sockets(directory).map_err(|source| Error::Io { doing: "looking for sockets".to_owned(), source })?
            {
                if !jail.path(&name)?.exists() {
                    jail.add(&directory.join(&name), &name, Place::Link)?;
                }
            }
            for (number, drive) in drives.iter().enumerate() {
                let id = drive_id(number);
                // By the same name, which a snapshot keeps.
                let path = jail.path(&id)?;
                fs::remove_file(&path)
                    .map_err(|source| Error::Io { doing: format!("removing {}", path.display()), source })?;
                jail.add_file(&drive.file, &id)?;
                let update = DriveUpdate { drive_id: id.clone(), path_on_host: Some(id), rate_limiter: None };
                self.vmm.api().patch_drive(&update).await?;
            }
            Ok(())
        };
        exchanged.await.map_err(|error| failed(format!("give VM {} the drives of a function", self.id), error))
    }

    async fn snapshot(&self, directory: &Path, beside: Beside) -> Result<(), SandboxError> {
        let api = self.vmm.api();
        let taken = async {
            let frozen = |source| Error::Io { doing: "thawing Firecracker".to_owned(), source };
            self.vmm.thaw().map_err(frozen)?;
            api.pause().await?;
            let create = SnapshotCreate {
                snapshot_type: SnapshotType::Full,
                snapshot_path: TAKEN[0].0.to_owned(),
                mem_file_path: TAKEN[1].0.to_owned(),
            };
            api.create_snapshot(&create).await?;
            let kept = tokio::task::spawn_blocking(beside).await.map_err(io::Error::other).and_then(|kept| kept);
            kept.map_err(|source| Error::Io { doing: "keeping the drives".to_owned(), source })?;
            for (taken, name) in TAKEN {
                let target = directory.join(name);
                // Renamed, on the same file system.
                self.vmm.jail().take_file(taken, &target)?;
                // For the users of those who are restored from it, by links in their jails; nobody else comes here.
                fs::set_permissions(&target, Permissions::from_mode(0o444))
                    .map_err(|source| Error::Io { doing: format!("opening {}", target.display()), source })?;
            }
            Ok(())
        };
        let taken = taken.await;
        let taken = api.resume().await.and(taken);
        taken.map_err(|error| {
            for name in [STATE, MEMORY] {
                let _ = fs::remove_file(directory.join(name));
            }
            failed(format!("take a snapshot of sandbox {}", self.id), error)
        })
    }

    fn gives_back(&self) -> Option<Duration> {
        // Its balloon of this version takes what it is told to take, and reports nothing by itself.
        None
    }

    fn kill(&self) {
        if let Err(error) = self.vmm.kill() {
            tracing::error!(sandbox = %self.id, %error, "cannot kill the Firecracker of a microVM");
        }
    }

    async fn ended(&self) {
        self.vmm.ended().await;
        // Also when another call does it: then this one waits for that.
        if let Err(error) = self.vmm.stop().await {
            tracing::warn!(sandbox = %self.id, %error, "cannot remove the jail of a microVM; the next start tries again");
        }
    }

    fn console(&self) -> String {
        self.vmm.console().text().trim().to_owned()
    }
}

fn during(operation: impl Into<String>) -> impl FnOnce(io::Error) -> SandboxError {
    let operation = operation.into();
    |source| SandboxError::Host { operation, source }
}

fn failed(operation: String, error: Error) -> SandboxError {
    SandboxError::Host { operation, source: io::Error::other(error) }
}

fn unsupported(why: &str) -> SandboxError {
    let source = io::Error::new(io::ErrorKind::Unsupported, why);
    SandboxError::Host { operation: "run microVMs by Firecracker".to_owned(), source }
}

/// The jailer takes letters, digits and hyphens.
fn jail_id(id: SandboxId) -> String {
    id.0.simple().to_string()
}

/// The name of a drive in the API, and of its file in the jail.
fn drive_id(number: usize) -> String {
    format!("drive{number}")
}

/// What the guest kernel calls its disk of this number: `vda` to `vdz`, `vdaa` and so on.
fn device(number: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = number + 1;
    while rest > 0 {
        rest -= 1;
        letters.insert(0, char::from(b'a' + (rest % 26) as u8));
        rest /= 26;
    }
    format!("vd{}", String::from_iter(letters))
}

fn limiter(rate: Rate) -> RateLimiter {
    let bucket = |size, one_time_burst| Some(TokenBucket { size, one_time_burst, refill_time: 1000 });
    RateLimiter { bandwidth: bucket(rate.bytes, Some(rate.burst)), ops: bucket(rate.operations, None) }
}

/// Names of the sockets at which connections of a guest arrive.
fn sockets(directory: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names = names.collect::<io::Result<Vec<_>>>()?;
    Ok(names.into_iter().filter(|name| name.starts_with(VSOCK)).collect())
}

/// A jail has device nodes, and Firecracker itself.
fn check_mount(flags: StatVfsMountFlags) -> io::Result<()> {
    for (flag, name) in [(StatVfsMountFlags::NODEV, "nodev"), (StatVfsMountFlags::NOEXEC, "noexec")] {
        if flags.contains(flag) {
            let text = format!("its file system is mounted with {name}: mount it without, or move the data directory");
            return Err(io::Error::other(text));
        }
    }
    Ok(())
}

fn cpu_template(path: &Path) -> Result<CpuConfig, SandboxError> {
    let read = || -> io::Result<CpuConfig> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    read().map_err(during(format!("read the CPU template {}", path.display())))
}

/// Writes a file that all can read, and nobody write.
fn write_anew(path: &Path, contents: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::write(path, contents)?;
    fs::set_permissions(path, Permissions::from_mode(0o444))
}
