//! Jails: what is in them, what they keep in, and that nothing is left of them.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use firecracker::api::{Action, NetworkInterface, NetworkInterfaceUpdate};
use firecracker::{CgroupVersion, Error, JailSpec, Jailer, JailerConfig, Place, Swept, Vmm};
use libtest_mimic::Trial;

use crate::guest;
use crate::settings::limiter;
use crate::support::{Host, boot_source, config, has_ended, machine, programs, refused, spec, test, test_with};

/// Makes this program the server that is killed in `a_killed_server_is_swept`; names its directory.
pub const SERVER: &str = "EMBERBOX_TEST_FIRECRACKER_SERVER";

pub fn trials() -> Vec<Trial> {
    vec![
        test("other_programs_are_refused", other_programs_are_refused),
        test("firecracker_is_jailed", firecracker_is_jailed),
        test("nothing_is_left", nothing_is_left),
        test("a_killed_server_is_swept", a_killed_server_is_swept),
        test("a_directory_has_one_server", a_directory_has_one_server),
        test("files_are_brought_in", files_are_brought_in),
        test("files_are_taken_out_with_care", files_are_taken_out_with_care),
        test("the_socket_is_no_link", the_socket_is_no_link),
        test("the_jailers_errors_are_told", the_jailers_errors_are_told),
        test_with("a_tap_in_a_network_namespace", missing_ip, a_tap_in_a_network_namespace),
    ]
}

fn missing_ip() -> Option<String> {
    let found = Command::new("ip").arg("-V").output().is_ok();
    (!found).then(|| "ip, of the Debian package iproute2".to_owned())
}

async fn other_programs_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let jailer = JailerConfig { firecracker: programs().join("jailer"), ..config(directory.path(), "emberbox-none") };
    // A jailer in the place of Firecracker has a version; its name gives it away to the jailer.
    let (jailer, _) = Jailer::open(jailer).await.unwrap();
    let error = jailer.jail(spec("vm-1")).unwrap().start().await.unwrap_err();
    assert!(matches!(error, Error::NotStarted { .. }), "{error}");
    drop(jailer);
    let other = JailerConfig { jailer: "/bin/echo".into(), ..config(directory.path(), "emberbox-none") };
    let error = Jailer::open(other).await.unwrap_err();
    assert!(error.to_string().contains("/bin/echo is no Firecracker program"), "{error}");
    let none = JailerConfig { jailer: "/none".into(), ..config(directory.path(), "emberbox-none") };
    assert!(matches!(Jailer::open(none).await.unwrap_err(), Error::Io { .. }));
}

/// The limit on the number of processes, and a value that the VM stays below.
fn pids() -> Vec<(String, String)> {
    vec![("pids.max".into(), "64".into())]
}

fn status(pid: i32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(&format!("{field}:"))).unwrap();
    line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
}

fn cgroup(host: &Host, id: &str) -> PathBuf {
    let hierarchy = match CgroupVersion::of_host() {
        CgroupVersion::V1 => "/sys/fs/cgroup/pids",
        CgroupVersion::V2 => "/sys/fs/cgroup",
    };
    Path::new(hierarchy).join(&host.parent_cgroup).join(id)
}

async fn limited(host: &Host, id: &str) -> Vmm {
    let jail = host.jailer.jail(JailSpec { cgroup: pids(), open_files: Some(100), ..spec(id) }).unwrap();
    jail.add(&host.file("kernel.elf", &guest::elf(guest::LETTERS)), "kernel", Place::Bind).unwrap();
    let vmm = jail.start().await.unwrap();
    vmm.api().put_machine_config(&machine()).await.unwrap();
    vmm.api().put_boot_source(&boot_source()).await.unwrap();
    vmm.api().act(Action::InstanceStart).await.unwrap();
    vmm
}

async fn firecracker_is_jailed() {
    let host = Host::start().await;
    let vmm = limited(&host, "vm-1").await;
    let pid = vmm.pid();
    assert_eq!(status(pid, "Uid"), "61234 61234 61234 61234");
    assert_eq!(status(pid, "Gid"), "61235 61235 61235 61235");
    assert_eq!(status(pid, "CapEff"), "0000000000000000");
    assert_eq!(status(pid, "Seccomp"), "2", "its filters are on");
    assert_eq!(status(pid, "NSpid"), format!("{pid} 1"));
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert!(limits.lines().any(|line| line.starts_with("Max open files") && line.contains(" 100 ")), "{limits}");
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(Path::new(&format!("/proc/{pid}/root/"))), inode(&vmm.jail().root()));
    assert!(fs::read(format!("/proc/{pid}/environ")).unwrap().is_empty());
    let members = fs::read_to_string(cgroup(&host, "vm-1").join("cgroup.procs")).unwrap();
    assert_eq!(members.trim(), pid.to_string());
    assert_eq!(fs::read_to_string(cgroup(&host, "vm-1").join("pids.max")).unwrap().trim(), "64");
    for (descriptor, expected) in [("0", "/dev/null"), ("1", "pipe:"), ("2", "pipe:")] {
        let target = fs::read_link(format!("/proc/{pid}/fd/{descriptor}")).unwrap();
        assert!(target.to_string_lossy().starts_with(expected), "{descriptor}: {}", target.display());
    }
}

#[track_caller]
fn assert_nothing_left(host: &Host, id: &str, pid: i32) {
    assert!(has_ended(pid), "process {pid}");
    assert!(!cgroup(host, id).exists(), "cgroup");
    assert!(!host.directory.path().join("jails/firecracker").join(id).exists(), "directory");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&*host.directory.path().to_string_lossy()), "mounts");
}

async fn nothing_is_left() {
    let host = Host::start().await;
    let vmm = limited(&host, "stopped").await;
    let pid = vmm.pid();
    assert!(cgroup(&host, "stopped").exists());
    vmm.stop().await.unwrap();
    assert_nothing_left(&host, "stopped", pid);
    vmm.stop().await.unwrap();
    // It still has the directory of all jails.
    drop(vmm);

    let vmm = limited(&host, "dropped").await;
    let pid = vmm.pid();
    drop(vmm);
    assert_nothing_left(&host, "dropped", pid);

    let jail = host.jail("unused");
    jail.add(&host.file("file", b"x"), "file", Place::Bind).unwrap();
    drop(jail);
    assert_nothing_left(&host, "unused", i32::MAX);
    assert!(host.directory.path().join("file").exists());

    let cgroup = cgroup(&host, "");
    drop(host);
    assert!(!cgroup.exists());
}

/// The server of the next test: starts a VM, says so, and waits for its death.
pub fn serve(directory: PathBuf) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let parent_cgroup = format!("emberbox-firecracker-test-server-{}", std::process::id());
        let (jailer, swept) = Jailer::open(config(&directory, &parent_cgroup)).await.unwrap();
        assert_eq!(swept, Swept::default());
        let host = Host { jailer, parent_cgroup, directory: tempfile::tempdir().unwrap() };
        let unused = host.jail("unused");
        let vmm = limited(&host, "vm-1").await;
        println!("{} {}", vmm.pid(), host.parent_cgroup);
        vmm.ended().await;
        drop(unused);
    });
}

async fn a_killed_server_is_swept() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Command::new(std::env::current_exe().unwrap())
        .env(SERVER, directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let (pid, parent_cgroup) = line.trim().split_once(' ').unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    let pid: i32 = pid.parse().unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists(), "the VM outlives its server");

    let (jailer, swept) = Jailer::open(config(directory.path(), parent_cgroup)).await.unwrap();
    assert_eq!(swept, Swept { jails: vec!["unused".into(), "vm-1".into()], processes: 1 });
    let host = Host { jailer, parent_cgroup: parent_cgroup.to_owned(), directory };
    assert_nothing_left(&host, "vm-1", pid);
    assert_nothing_left(&host, "unused", pid);
    // A sweep that finds nothing, and the directory still works.
    limited(&host, "vm-1").await.stop().await.unwrap();
}

async fn a_directory_has_one_server() {
    let host = Host::start().await;
    let vmm = host.running("vm-1").await;
    let error = Jailer::open(config(host.directory.path(), "emberbox-none")).await.unwrap_err();
    assert!(matches!(error, Error::Locked(_)), "{error}");
    assert!(vmm.runs());
    // Nor is an id used twice.
    assert!(host.jailer.jail(spec("vm-1")).is_err());
    assert!(vmm.runs() && vmm.jail().root().exists());
}

async fn files_are_brought_in() {
    let host = Host::start().await;
    let jail = host.jail("vm-1");
    let file = host.file("file", b"shared");
    symlink(&file, host.directory.path().join("link")).unwrap();
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let inside = |name: &str| jail.root().join(name);
    jail.add(&host.directory.path().join("link"), "linked", Place::Link).unwrap();
    assert_eq!(inode(&inside("linked")), inode(&file));
    jail.add(&file, "bound", Place::Bind).unwrap();
    assert_eq!(inode(&inside("bound")), inode(&file));
    assert!(fs::write(inside("bound"), "x").is_err(), "read-only, even for root");
    jail.add(&file, "copied", Place::Copy).unwrap();
    assert_eq!(fs::read(inside("copied")).unwrap(), b"shared");
    let metadata = fs::metadata(inside("copied")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o777), (61_234, 61_235, 0o600));

    // Another file system.
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let far = elsewhere.path().join("far");
    fs::write(&far, "far").unwrap();
    fs::set_permissions(&far, Permissions::from_mode(0o644)).unwrap();
    jail.add(&far, "far", Place::Link).unwrap();
    assert_eq!(inode(&inside("far")), inode(&far));

    fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    let error = jail.add(&file, "secret", Place::Link).unwrap_err();
    assert!(error.to_string().contains("no right to read it"), "{error}");
    assert!(jail.add(&file, "copied", Place::Copy).is_err(), "it is there");
    for name in ["../x", "a/b", "api.sock", "dev", "firecracker", "firecracker.pid", "", "."] {
        assert!(matches!(jail.add(&file, name, Place::Copy), Err(Error::Invalid { .. })), "{name}");
    }

    let vmm = jail.start().await.unwrap();
    // It sees all of them, as what they are: none is an ELF kernel.
    for name in ["linked", "bound", "copied", "far"] {
        let seen = format!("/proc/{}/root/{name}", vmm.pid());
        assert!(fs::metadata(&seen).is_ok_and(|metadata| metadata.len() > 0), "{seen}");
    }
    vmm.stop().await.unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"shared");
    assert_eq!(fs::read(&far).unwrap(), b"far");
}

async fn files_are_taken_out_with_care() {
    let host = Host::start().await;
    let jail = host.jail("vm-1");
    let shared = host.file("shared", b"shared");
    jail.add(&shared, "linked", Place::Link).unwrap();
    jail.create_file("good", 3).unwrap();
    symlink("/etc/passwd", jail.root().join("symlink")).unwrap();
    let target = host.directory.path().join("out");
    for name in ["linked", "symlink"] {
        let error = jail.take_file(name, &target).unwrap_err();
        assert!(!matches!(error, Error::NotStarted { .. }) && !target.exists(), "{name}: {error}");
    }
    assert_eq!(fs::read(&shared).unwrap(), b"shared");
    jail.take_file("good", &target).unwrap();
    let metadata = fs::metadata(&target).unwrap();
    assert_eq!((metadata.len(), metadata.uid(), metadata.gid()), (3, 0, 0));
    // To another file system it is copied.
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    jail.create_file("good", 5).unwrap();
    jail.take_file("good", &elsewhere.path().join("out")).unwrap();
    assert_eq!(fs::metadata(elsewhere.path().join("out")).unwrap().len(), 5);
}

/// A process in the jail cannot have us speak to another service of the host.
async fn the_socket_is_no_link() {
    let host = Host::start().await;
    let other = host.vmm("other").await;
    let vmm = host.vmm("vm-1").await;
    let socket = vmm.jail().root().join("api.sock");
    fs::remove_file(&socket).unwrap();
    symlink(other.jail().root().join("api.sock"), &socket).unwrap();
    let error = vmm.api().instance().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert_eq!(other.api().instance().await.unwrap().id, "other");
}

async fn the_jailers_errors_are_told() {
    let host = Host::start().await;
    let netns = Some("/run/netns/emberbox-none".into());
    let error = host.jailer.jail(JailSpec { netns, ..spec("vm-1") }).unwrap().start().await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("jail vm-1") && text.contains("/run/netns/emberbox-none"), "{text}");
    let cgroup = vec![("emberbox.max".into(), "1".into())];
    let error = host.jailer.jail(JailSpec { cgroup, ..spec("vm-1") }).unwrap().start().await.unwrap_err();
    assert!(error.to_string().to_lowercase().contains("cgroup") || error.to_string().contains("emberbox"), "{error}");
    assert!(!host.directory.path().join("jails/firecracker/vm-1").exists());
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Removed even when the test fails.
struct Netns(String);

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

async fn a_tap_in_a_network_namespace() {
    let host = Host::start().await;
    let netns = Netns(format!("emberbox-test-{}", std::process::id()));
    let name = &netns.0;
    ip(&format!("netns add {name}"));
    ip(&format!("-n {name} tuntap add dev tap0 mode tap user 61234 group 61235"));
    let jail = host.jailer.jail(JailSpec { netns: Some(format!("/run/netns/{name}").into()), ..spec("vm-1") }).unwrap();
    jail.add(&host.file("kernel.elf", &guest::elf(guest::LETTERS)), "kernel", Place::Link).unwrap();
    let vmm = jail.start().await.unwrap();
    let api = vmm.api();
    let interface = NetworkInterface {
        iface_id: "eth0".into(),
        host_dev_name: "tap0".into(),
        guest_mac: Some("06:00:c0:00:02:01".into()),
        rx_rate_limiter: limiter(),
        tx_rate_limiter: limiter(),
    };
    api.put_network_interface(&interface).await.unwrap();
    let twice = NetworkInterface { iface_id: "eth1".into(), host_dev_name: "tap1".into(), ..interface.clone() };
    refused(api.put_network_interface(&twice).await, "MAC address is already in use");
    assert_eq!(api.vm_config().await.unwrap().network_interfaces, [interface]);
    api.put_machine_config(&machine()).await.unwrap();
    api.put_boot_source(&boot_source()).await.unwrap();
    api.act(Action::InstanceStart).await.unwrap();
    let update = NetworkInterfaceUpdate { iface_id: "eth0".into(), rx_rate_limiter: limiter(), ..Default::default() };
    api.patch_network_interface(&update).await.unwrap();
    let namespace = |path: String| fs::metadata(path).unwrap().ino();
    assert_eq!(namespace(format!("/proc/{}/ns/net", vmm.pid())), namespace(format!("/run/netns/{name}")));
    vmm.stop().await.unwrap();
}
