//! The bodies of requests and answers, as Firecracker 1.12 describes them (`firecracker.yaml`). What Emberbox has no use
//! for (metadata service, vhost-user drives, static CPU templates) is not here. Paths are those inside the jail.

use serde::{Deserialize, Serialize};

use crate::cpu::CpuConfig;

/// State of a VM, as `GET /` tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum State {
    /// Configured, or not yet.
    #[serde(rename = "Not started")]
    NotStarted,
    /// Its processors run.
    Running,
    /// They do not, and can again.
    Paused,
}

/// Answer to `GET /`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InstanceInfo {
    /// The jail's id.
    pub id: String,
    /// What it does.
    pub state: State,
    /// Version of Firecracker.
    pub vmm_version: String,
    /// `Firecracker`.
    pub app_name: String,
}

/// Answer to `GET /version`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FirecrackerVersion {
    /// Without a leading `v`.
    pub firecracker_version: String,
}

/// `PUT /machine-config`, before the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MachineConfig {
    /// 1 to 32; even, or 1, with `smt`.
    pub vcpu_count: u8,
    /// MiB of memory.
    pub mem_size_mib: u32,
    /// Pairs of virtual processors look like threads of one core.
    #[serde(default)]
    pub smt: bool,
    /// Needed for [`SnapshotType::Diff`]; costs the sharing of huge pages.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// What the memory is made of.
    #[serde(default)]
    pub huge_pages: HugePages,
}

/// Pages behind a guest's memory.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum HugePages {
    /// Ordinary ones.
    #[default]
    None,
    /// From hugetlbfs. No balloon goes with them.
    #[serde(rename = "2M")]
    TwoMiB,
}

/// `PUT /boot-source`, before the start.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BootSource {
    /// An uncompressed ELF kernel.
    pub kernel_image_path: String,
    /// An initial ramdisk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<String>,
    /// The kernel's command line; none is a default with the serial console on. See [`QUIET_SERIAL`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}

/// For [`BootSource::boot_args`]: the guest's kernel does not use the serial port. (It is always there.)
pub const QUIET_SERIAL: &str = "8250.nr_uarts=0";

/// Bounds bytes and operations of a device.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RateLimiter {
    /// In bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// In operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// `size` tokens come back in `refill_time` milliseconds. All zero switches a limit off.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TokenBucket {
    /// At most so many at once.
    pub size: u64,
    /// Once, before the first refill, so many more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds from empty to full.
    pub refill_time: u64,
}

/// `PUT /drives/{drive_id}`, before the start.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Drive {
    /// Letters, digits and `_`.
    pub drive_id: String,
    /// A file or block device.
    pub path_on_host: String,
    /// `root=/dev/vda` is added to the kernel's command line. At most one drive.
    pub is_root_device: bool,
    /// The guest cannot write; the file is opened so too.
    pub is_read_only: bool,
    /// `PARTUUID` of the root's partition, in the place of `/dev/vda`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// What a guest's flush does.
    #[serde(default)]
    pub cache_type: CacheType,
    /// How the host reads and writes.
    #[serde(default)]
    pub io_engine: IoEngine,
    /// None is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// What a guest's flush does.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum CacheType {
    /// Nothing: for disks that nobody reads again.
    #[default]
    Unsafe,
    /// `fsync`.
    Writeback,
}

/// How the host reads and writes a drive.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum IoEngine {
    /// In the VM's own thread.
    #[default]
    Sync,
    /// By io_uring.
    Async,
}

/// `PATCH /drives/{drive_id}`, after the start: another file of any size, other limits.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DriveUpdate {
    /// Of [`Drive::drive_id`].
    pub drive_id: String,
    /// The guest is told that its disk changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<String>,
    /// None leaves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// `PUT /network-interfaces/{iface_id}`, before the start.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetworkInterface {
    /// Letters, digits and `_`.
    pub iface_id: String,
    /// A tap in the VM's network namespace.
    pub host_dev_name: String,
    /// `xx:xx:xx:xx:xx:xx`; none is one of the guest's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// To the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// From the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// `PATCH /network-interfaces/{iface_id}`, after the start.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetworkInterfaceUpdate {
    /// Of [`NetworkInterface::iface_id`].
    pub iface_id: String,
    /// None leaves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// None leaves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// `PUT /vsock`, before the start. The guest's connections to port N of CID 2 arrive at the Unix socket `{uds_path}_N`;
/// the host's begin at `uds_path` with `CONNECT N\n`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Vsock {
    /// 3 or more. Every VM has its own socket, so all may have the same.
    pub guest_cid: u32,
    /// Firecracker makes it; it must not exist.
    pub uds_path: String,
}

/// `PUT /balloon`, before the start.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Balloon {
    /// MiB to take from the guest.
    pub amount_mib: u32,
    /// Give back when the guest is out of memory.
    pub deflate_on_oom: bool,
    /// Seconds between the guest's reports; 0 is none, and cannot be changed after the start.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
}

/// `PATCH /balloon`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BalloonUpdate {
    /// MiB to have taken from the guest.
    pub amount_mib: u32,
}

/// `PATCH /balloon/statistics`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BalloonStatsUpdate {
    /// Seconds; from 0 to another and back only before the start.
    pub stats_polling_interval_s: u16,
}

/// Answer to `GET /balloon/statistics`. What the guest reports is the guest's word; none until it did.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BalloonStats {
    /// Asked for.
    pub target_pages: u64,
    /// Taken.
    pub actual_pages: u64,
    /// Asked for, in MiB.
    pub target_mib: u64,
    /// Taken, in MiB.
    pub actual_mib: u64,
    /// Bytes not used at all, by the guest's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_memory: Option<u64>,
    /// Bytes of all memory, by the guest's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    /// Bytes for new programs without swapping, by the guest's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_memory: Option<u64>,
    /// Bytes of caches that can be had back without IO, by the guest's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_caches: Option<u64>,
}

/// `PUT /entropy`, before the start.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entropy {
    /// None is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// `PUT /logger`. Without a path the log goes to standard output, to the console, which is bounded; a file grows.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Logger {
    /// A file or a named pipe that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_path: Option<String>,
    /// Info if none was given yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
    /// Lines name their level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Lines name the place in the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
    /// Only lines of this module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// How much Firecracker logs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "names of levels")]
pub enum LogLevel {
    Off,
    Error,
    Warning,
    Info,
    Debug,
    Trace,
}

/// `PUT /metrics`, once.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Metrics {
    /// A file or a named pipe that exists. One JSON object is added every minute, and by [`Action::FlushMetrics`].
    pub metrics_path: String,
}

/// `PUT /actions`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "action_type")]
pub enum Action {
    /// Boots the VM. Once.
    InstanceStart,
    /// Writes [`Metrics`] now.
    FlushMetrics,
    /// What a kernel with a driver for i8042 takes for a request to shut down. x86_64, after the start.
    SendCtrlAltDel,
}

/// `PATCH /vm`, after the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Vm {
    pub state: VmState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum VmState {
    Paused,
    Resumed,
}

/// `PUT /snapshot/create`, of a paused VM. The jail's user must be able to write the files.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotCreate {
    /// All memory, or what changed since.
    pub snapshot_type: SnapshotType,
    /// Gets the state of devices and processors.
    pub snapshot_path: String,
    /// Gets the memory.
    pub mem_file_path: String,
}

/// How much of the memory a snapshot has.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SnapshotType {
    /// All of it.
    #[default]
    Full,
    /// What changed since the last; needs [`MachineConfig::track_dirty_pages`].
    Diff,
}

/// `PUT /snapshot/load`, as the first that a new Firecracker is asked (logger and metrics apart). Drives, taps and
/// the vsock's path must be where they were.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotLoad {
    /// From [`SnapshotCreate::snapshot_path`].
    pub snapshot_path: String,
    /// Where the memory comes from.
    pub mem_backend: MemoryBackend,
    /// So that [`SnapshotType::Diff`] is possible again.
    #[serde(default)]
    pub enable_diff_snapshots: bool,
    /// The processors run at once.
    #[serde(default)]
    pub resume_vm: bool,
    /// Other taps than those of the snapshot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_overrides: Vec<NetworkOverride>,
}

/// Where a loaded VM's memory comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemoryBackend {
    /// Meaning of the path.
    pub backend_type: MemoryBackendType,
    /// A file or a Unix socket.
    pub backend_path: String,
}

/// Where a loaded VM's memory comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MemoryBackendType {
    /// A file, mapped privately: VMs share its pages until they write, and it must not change while they run.
    File,
    /// A process of ours behind a Unix socket, which gets the userfaultfd.
    Uffd,
}

/// Another tap for an interface of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetworkOverride {
    /// Of [`NetworkInterface::iface_id`].
    pub iface_id: String,
    /// The tap.
    pub host_dev_name: String,
}

/// Answer to `GET /vm/config`: all that was configured.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each is the body of the request of its name")]
pub struct VmConfig {
    pub balloon: Option<Balloon>,
    pub drives: Vec<Drive>,
    pub boot_source: BootSource,
    pub cpu_config: Option<CpuConfig>,
    pub logger: Option<Logger>,
    pub machine_config: MachineConfig,
    pub metrics: Option<Metrics>,
    pub network_interfaces: Vec<NetworkInterface>,
    pub vsock: Option<Vsock>,
    pub entropy: Option<Entropy>,
}
