//! Limits and freezing, by cgroups of either version.
//!
//! Version 1 has one tree of directories for each controller, version 2 one for all. A [`Group`] hides that: it knows
//! where each controller's files of one sandbox are, and what they are called.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Access;
use serde::{Deserialize, Serialize};

use crate::Usage;

/// Where the kernel's cgroup file systems are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// The directory for all instances.
const PARENT: &str = "emberbox";
/// Within this time (20 ms, as on AWS) a sandbox gets its share of CPU. The common 100 ms would let a small function
/// stand still for 90 ms at a stretch.
const PERIOD_US: u64 = 20_000;
/// The period of a sandbox with a vCPU or more, in which no thread alone can be made to stand still. Longer periods are
/// less work for the kernel's scheduler.
const FULL_PERIOD_US: u64 = 100_000;
/// The kernel's least quota.
const LEAST_QUOTA_US: u64 = 1_000;
/// Processes and threads in a sandbox, and PID 1.
const PIDS: u32 = 1024 + 1;

/// A controller of version 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Controller {
    Memory,
    Cpu,
    CpuAccount,
    Pids,
    Freezer,
}

const CONTROLLERS: [(Controller, &str); 5] = [
    (Controller::Memory, "memory"),
    (Controller::Cpu, "cpu"),
    (Controller::CpuAccount, "cpuacct"),
    (Controller::Pids, "pids"),
    (Controller::Freezer, "freezer"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Version {
    One,
    Two,
}

/// The cgroup of an instance or of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    version: Version,
    /// The directory of each controller there is. Of version 2: the same for all.
    directories: Vec<(Controller, PathBuf)>,
}

/// Which cgroups a host has.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    version: Version,
    roots: Vec<(Controller, PathBuf)>,
    /// Names of controllers that are missing.
    pub missing: Vec<&'static str>,
    /// Of version 2: how many processes keep the controllers from being handed down. The kernel hands them to groups below
    /// only from the host's root group, or from one without processes of its own, which that of a container usually is not.
    pub crowd: usize,
}

impl Hierarchy {
    /// Looks at the host; `None` when there is nothing to use.
    pub fn detect() -> Option<Self> {
        Self::detect_in(Path::new(ROOT))
    }

    fn detect_in(root: &Path) -> Option<Self> {
        let unified = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        let has = |name: &str| unified.split_whitespace().any(|controller| controller == name);
        if has("memory") || has("pids") || has("cpu") {
            let crowd = crowd(root);
            let (roots, missing) = split(|controller, name| {
                let built_in = matches!(controller, Controller::CpuAccount | Controller::Freezer);
                (built_in || (has(name) && crowd == 0)).then(|| root.to_owned())
            });
            return Some(Self { version: Version::Two, roots, missing, crowd });
        }
        let (roots, missing) = split(|_, name| {
            let directory = root.join(name);
            directory.join("cgroup.procs").exists().then_some(directory)
        });
        (!roots.is_empty()).then_some(Self { version: Version::One, roots, missing, crowd: 0 })
    }

    /// In words, for the operator.
    pub fn describe(&self) -> String {
        let version = if self.version == Version::One { "v1" } else { "v2" };
        match self.missing.as_slice() {
            _ if self.crowd > 0 => format!(
                "cgroup {version}, but {} processes are in the group at {ROOT} itself: the kernel hands its controllers to \
                 no group below, and nothing is limited",
                self.crowd
            ),
            [] => format!("cgroup {version}: memory, CPU and process limits and freezing are enforced"),
            missing => format!("cgroup {version}, but without {}: not limited", missing.join(", ")),
        }
    }

    /// The first directory in which this user may not make groups, if there is one.
    pub fn closed(&self) -> Option<PathBuf> {
        let makes_groups_in = |root: &PathBuf| {
            let ours = root.join(PARENT);
            if ours.is_dir() { ours } else { root.clone() }
        };
        let may_write = |directory: &PathBuf| rustix::fs::access(directory, Access::WRITE_OK).is_ok();
        self.roots.iter().map(|(_, root)| makes_groups_in(root)).find(|directory| !may_write(directory))
    }

    /// The cgroup of an instance.
    pub fn instance(&self, instance: u32) -> Group {
        let directories = self
            .roots
            .iter()
            .map(|(controller, root)| (*controller, root.join(PARENT).join(instance.to_string())))
            .collect();
        Group { version: self.version, directories }
    }
}

/// See [`Hierarchy::crowd`].
fn crowd(root: &Path) -> usize {
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
    let handed_down = read("cgroup.subtree_control");
    let given = |controller: &str| handed_down.split_whitespace().any(|name| name == controller);
    // The host's own root group has no type.
    if !root.join("cgroup.type").exists() || ["memory", "cpu", "pids"].into_iter().all(given) {
        return 0;
    }
    read("cgroup.procs").lines().count()
}

fn split(
    locate: impl Fn(Controller, &'static str) -> Option<PathBuf>,
) -> (Vec<(Controller, PathBuf)>, Vec<&'static str>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (controller, name) in CONTROLLERS {
        match locate(controller, name) {
            Some(directory) => found.push((controller, directory)),
            None => missing.push(name),
        }
    }
    (found, missing)
}

impl Group {
    /// The group called `name` in this one.
    pub fn child(&self, name: &str) -> Self {
        let directories = self.directories.iter().map(|(controller, d)| (*controller, d.join(name))).collect();
        Self { version: self.version, directories }
    }

    /// Makes it. Of version 2, hands the controllers down to it.
    pub fn make(&self) -> io::Result<()> {
        for directory in self.distinct() {
            fs::create_dir_all(directory).map_err(|error| about("make", directory, error))?;
            if self.version == Version::Two {
                let above: Vec<_> = directory.ancestors().skip(1).take_while(|d| d.starts_with(ROOT)).collect();
                for parent in above.into_iter().rev() {
                    // Of one that has processes the kernel would keep the memory, hand the rest down to threads, and take
                    // no process into the groups below any more.
                    if crowd(parent) > 0 {
                        break;
                    }
                    // One at a time: a controller that is missing must not keep the others away.
                    for controller in ["+memory", "+cpu", "+pids"] {
                        let _ = fs::write(parent.join("cgroup.subtree_control"), controller);
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves the calling process into it.
    pub fn enter(&self) -> io::Result<()> {
        for directory in self.distinct() {
            fs::write(directory.join("cgroup.procs"), "0").map_err(|error| about("enter", directory, error))?;
        }
        Ok(())
    }

    /// Moves another process into it.
    #[cfg(feature = "microvm")]
    pub fn add(&self, pid: u32) -> io::Result<()> {
        for directory in self.distinct() {
            fs::write(directory.join("cgroup.procs"), pid.to_string())
                .map_err(|error| about(&format!("put process {pid} into"), directory, error))?;
        }
        Ok(())
    }

    /// Bounds the memory of all the groups in it together.
    pub fn limit_memory(&self, memory_mb: u64) -> io::Result<()> {
        let Some(file) = self.file(Controller::Memory, "memory.limit_in_bytes", "memory.max") else { return Ok(()) };
        let bytes = memory_mb.saturating_mul(1024 * 1024).to_string();
        fs::write(&file, &bytes).map_err(|error| about(&format!("write {bytes} to"), &file, error))
    }

    /// Sets its limits.
    pub fn limit(&self, memory_mb: u32, vcpus: f64) -> io::Result<()> {
        // Version 1 refuses a limit below what is in use. Version 2 takes it, and kills whoever is inside.
        if memory_mb == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a memory limit of 0 MB"));
        }
        for setting in self.settings(memory_mb, vcpus) {
            match fs::write(&setting.file, &setting.value) {
                Err(error) if !setting.optional => {
                    return Err(about(&format!("write {} to", setting.value), &setting.file, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn settings(&self, memory_mb: u32, vcpus: f64) -> Vec<Setting> {
        let memory = u64::from(memory_mb) * 1024 * 1024;
        let period = if vcpus >= 1.0 { FULL_PERIOD_US } else { PERIOD_US };
        let quota = ((vcpus * period as f64) as u64).max(LEAST_QUOTA_US);
        let mut settings = Vec::new();
        let mut add = |controller, one: &str, two: &str, value: String, optional| {
            if let Some(file) = self.file(controller, one, two) {
                settings.push(Setting { file, value, optional });
            }
        };
        add(Controller::Memory, "memory.limit_in_bytes", "memory.max", memory.to_string(), false);
        // Kernels without swap accounting have no such file. Version 1 counts memory and swap together.
        let swap = if self.version == Version::One { memory } else { 0 };
        add(Controller::Memory, "memory.memsw.limit_in_bytes", "memory.swap.max", swap.to_string(), true);
        // A group can be limited again: a quota below the burst that is set is refused.
        add(Controller::Cpu, "cpu.cfs_burst_us", "cpu.max.burst", "0".to_owned(), true);
        add(Controller::Cpu, "cpu.cfs_period_us", "", period.to_string(), false);
        add(Controller::Cpu, "cpu.cfs_quota_us", "", quota.to_string(), false);
        add(Controller::Cpu, "", "cpu.max", format!("{quota} {period}"), false);
        // What was not used in one period may be used in the next, since Linux 5.14.
        add(Controller::Cpu, "cpu.cfs_burst_us", "cpu.max.burst", quota.to_string(), true);
        add(Controller::Pids, "pids.max", "pids.max", PIDS.to_string(), false);
        settings
    }

    /// The file that freezes and thaws; `None` where nothing can.
    pub fn freezer(&self) -> Option<PathBuf> {
        self.file(Controller::Freezer, "freezer.state", "cgroup.freeze")
    }

    /// What to write into [`Group::freezer`].
    pub fn freezer_value(&self, frozen: bool) -> &'static str {
        match (self.version, frozen) {
            (Version::One, true) => "FROZEN",
            (Version::One, false) => "THAWED",
            (Version::Two, true) => "1",
            (Version::Two, false) => "0",
        }
    }

    /// Lets its processes run again, if it was frozen: version 1 cannot even kill what is frozen.
    pub fn thaw(&self) {
        if let Some(file) = self.freezer() {
            let _ = fs::write(file, self.freezer_value(false));
        }
    }

    /// What it has used; zero where it is not known.
    pub fn usage(&self) -> Usage {
        let number = |controller, one, two| self.read(controller, one, two).trim().parse().unwrap_or(0);
        let cpu = match self.version {
            Version::One => Duration::from_nanos(number(Controller::CpuAccount, "cpuacct.usage", "")),
            Version::Two => Duration::from_micros(field(&self.read(Controller::Cpu, "", "cpu.stat"), "usage_usec")),
        };
        Usage {
            memory_peak: number(Controller::Memory, "memory.max_usage_in_bytes", "memory.peak"),
            memory_now: number(Controller::Memory, "memory.usage_in_bytes", "memory.current"),
            oom_kills: self.oom_kills(),
            cpu,
        }
    }

    /// The file that holds the peak of memory; `None` where it is not measured.
    pub fn memory_peak(&self) -> Option<PathBuf> {
        self.file(Controller::Memory, "memory.max_usage_in_bytes", "memory.peak")
    }

    /// How often the memory limit's killer struck.
    pub fn oom_kills(&self) -> u64 {
        field(&self.read(Controller::Memory, "memory.oom_control", "memory.events"), "oom_kill")
    }

    /// The processes in it and in the groups below, by the caller's numbers.
    pub fn processes(&self) -> Vec<i32> {
        let mut processes = Vec::new();
        for directory in self.distinct() {
            let below = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
            for directory in below.chain([directory.to_owned()]) {
                let listed = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
                processes.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
            }
        }
        processes
    }

    /// The names of the groups in it.
    pub fn children(&self) -> Vec<String> {
        let mut names = Vec::new();
        for directory in self.distinct() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    names.push(entry.file_name().to_string_lossy().into_owned());
                }
            }
        }
        names.sort();
        names.dedup();
        names
    }

    /// Removes it, which must be empty. No error if it is gone.
    pub fn remove(&self) -> io::Result<()> {
        for directory in self.distinct() {
            match fs::remove_dir(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(about("remove", directory, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether any part of it exists.
    pub fn exists(&self) -> bool {
        self.distinct().iter().any(|directory| directory.exists())
    }

    fn read(&self, controller: Controller, one: &str, two: &str) -> String {
        self.file(controller, one, two).and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default()
    }

    /// A controller's file by its name in each version; empty: that version has none.
    fn file(&self, controller: Controller, one: &str, two: &str) -> Option<PathBuf> {
        let name = if self.version == Version::One { one } else { two };
        let (_, directory) = self.directories.iter().find(|(c, _)| *c == controller)?;
        (!name.is_empty()).then(|| directory.join(name))
    }

    fn distinct(&self) -> Vec<&Path> {
        let mut directories: Vec<_> = self.directories.iter().map(|(_, directory)| directory.as_path()).collect();
        directories.dedup();
        directories
    }
}

/// A value for a file.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    file: PathBuf,
    value: String,
    /// Not every kernel has it.
    optional: bool,
}

/// The number after `name` in lines of `name number`.
fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

fn about(action: &str, path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{action} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (path, contents) in files {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        directory
    }

    fn values(group: &Group, memory_mb: u32, vcpus: f64) -> Vec<(String, String)> {
        let name = |file: &Path| file.file_name().unwrap().to_str().unwrap().to_owned();
        group.settings(memory_mb, vcpus).into_iter().map(|s| (name(&s.file), s.value)).collect()
    }

    #[test]
    fn version_1_has_a_directory_for_each_controller() {
        let host = host(&[("memory/cgroup.procs", ""), ("cpu/cgroup.procs", ""), ("freezer/cgroup.procs", "")]);
        let hierarchy = Hierarchy::detect_in(host.path()).unwrap();
        assert_eq!(hierarchy.missing, ["cpuacct", "pids"]);
        let group = hierarchy.instance(3).child("x");
        assert_eq!(group.freezer().unwrap(), host.path().join("freezer/emberbox/3/x/freezer.state"));
        let expected = [
            ("memory.limit_in_bytes", "134217728"),
            ("memory.memsw.limit_in_bytes", "134217728"),
            ("cpu.cfs_burst_us", "0"),
            ("cpu.cfs_period_us", "20000"),
            ("cpu.cfs_quota_us", "1447"),
            ("cpu.cfs_burst_us", "1447"),
        ];
        assert_eq!(values(&group, 128, 128.0 / 1769.0), expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn version_2_has_one_directory() {
        let host = host(&[("cgroup.controllers", "cpuset cpu io memory pids\n")]);
        let hierarchy = Hierarchy::detect_in(host.path()).unwrap();
        assert!(hierarchy.missing.is_empty());
        let group = hierarchy.instance(3).child("x");
        assert_eq!(group.distinct(), [host.path().join("emberbox/3/x")]);
        let expected = [
            ("memory.max", "1073741824"),
            ("memory.swap.max", "0"),
            ("cpu.max.burst", "0"),
            ("cpu.max", "1000 20000"),
            ("cpu.max.burst", "1000"),
            ("pids.max", "1025"),
        ];
        assert_eq!(values(&group, 1024, 0.001), expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
        group.make().unwrap();
        fs::write(host.path().join("emberbox/3/x/memory.events"), "low 0\noom 2\noom_kill 1\n").unwrap();
        fs::write(host.path().join("emberbox/3/x/cpu.stat"), "usage_usec 1500\nuser_usec 1\n").unwrap();
        assert_eq!(group.usage(), Usage { oom_kills: 1, cpu: Duration::from_micros(1500), ..Usage::default() });
    }

    #[test]
    fn processes_in_a_containers_own_group_keep_the_controllers_from_sandboxes() {
        let controllers = ("cgroup.controllers", "cpu memory pids\n");
        let (container, processes) = (("cgroup.type", "domain\n"), ("cgroup.procs", "1\n17\n"));
        let crowd = |files: &[(&str, &str)]| Hierarchy::detect_in(host(files).path()).unwrap().crowd;
        assert_eq!(crowd(&[controllers, container, processes]), 2);
        assert_eq!(crowd(&[controllers, processes]), 0, "the host's root group may have processes");
        assert_eq!(crowd(&[controllers, container, ("cgroup.procs", "")]), 0);
        let handed_down = ("cgroup.subtree_control", "cpu io memory pids\n");
        assert_eq!(crowd(&[controllers, container, processes, handed_down]), 0, "threads, or the kernel knows better");
        let crowded = Hierarchy::detect_in(host(&[controllers, container, processes]).path()).unwrap();
        assert_eq!(values(&crowded.instance(3), 128, 1.0), [], "what is not there cannot be set");
        let described = crowded.describe();
        assert!(described.contains("2 processes") && described.contains("nothing is limited"), "{described}");
    }

    #[test]
    fn a_whole_vcpu_is_counted_over_a_longer_period() {
        let host = host(&[("cgroup.controllers", "cpu\n")]);
        let group = Hierarchy::detect_in(host.path()).unwrap().instance(3);
        let cpu_max = |vcpus| values(&group, 1769, vcpus).into_iter().find(|(name, _)| name == "cpu.max").unwrap().1;
        assert_eq!((cpu_max(1.0), cpu_max(0.5)), ("100000 100000".to_owned(), "10000 20000".to_owned()));
    }

    #[test]
    fn a_host_without_cgroups_has_none() {
        assert!(Hierarchy::detect_in(host(&[]).path()).is_none());
    }
}
