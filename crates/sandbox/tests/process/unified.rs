//! The same limits by cgroups of version 2: in a virtual machine of their own with Debian's kernel, as the host of the tests
//! may have version 1, and no process can exchange its host's.
//!
//! This program boots the machine and is what runs in it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use sandbox::SandboxEngine as _;
use sandbox::process::Network;

use crate::support::{ATTACKER, Guest, Host, eventually, test};

/// Where Debian's kernel package is unpacked.
const KERNEL: &str = "EMBERBOX_TEST_DEBIAN_KERNEL";
/// Set inside.
const INSIDE: &str = "EMBERBOX_TEST_UNIFIED";
const NAME: &str = "cgroups_of_version_2";
/// What is run there: all that has to do with cgroups, but for the fork bomb, which an emulated processor takes two minutes
/// for.
const TESTS: [&str; 11] = [
    "limits_are_enforced",
    "a_share_of_cpu",
    "runs_a_process",
    "kill_all_leaves_tmp",
    "nothing_is_left_after_destroy",
    "nothing_is_left_after_the_engine_is_killed",
    "the_next_engine_sweeps_up",
    "works_without_root",
    "attack_memory_bomb",
    "attack_memory_bombs_together",
    "attack_run_while_frozen",
];
/// What the tests, and the sandboxes in them, run.
const PROGRAMS: [&str; 28] = [
    "sh",
    "cat",
    "chmod",
    "chown",
    "cp",
    "echo",
    "env",
    "false",
    "id",
    "ip",
    "kmod",
    "ls",
    "mkdir",
    "mkfs.ext4",
    "mount",
    "nft",
    "pasta",
    "python3",
    "rm",
    "setpriv",
    "setsid",
    "sleep",
    "test",
    "touch",
    "true",
    "umount",
    "unshare",
    "timeout",
];
/// Runs the tests that are named.
const RUN: &str = r#"#!/bin/sh
for name; do /tests --exact --color never "$name" && echo "PASSED $where$name"; done
"#;
const INIT: &str = r#"#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin EMBERBOX_TEST_UNIFIED=1 EMBERBOX_REQUIRE_ALL=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
modprobe loop
ip link set lo up
/run-tests $(cat /names)
echo '+memory +cpu +pids' > /sys/fs/cgroup/cgroup.subtree_control
mkdir /sys/fs/cgroup/box
echo 0 > /sys/fs/cgroup/box/cgroup.procs
unshare --cgroup --mount /container
echo o > /proc/sysrq-trigger
sleep 60
"#;
/// As in a container: the group at the mount is not the host's root group, and has processes. Then what the doctor advises.
const CONTAINER: &str = r#"#!/bin/sh
umount /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
/run-tests a_crowd_is_told
mkdir /sys/fs/cgroup/init
for p in $(cat /sys/fs/cgroup/cgroup.procs); do echo $p > /sys/fs/cgroup/init/cgroup.procs; done
where='in a container: ' /run-tests limits_are_enforced attack_memory_bomb
"#;

pub fn tests() -> Vec<Trial> {
    let everywhere = vec![test("a_share_of_cpu", a_share_of_cpu), test("limits_are_enforced", limits_are_enforced)];
    let here = match std::env::var_os(INSIDE) {
        Some(_) => test("a_crowd_is_told", a_crowd_is_told),
        None => Trial::test(NAME, in_a_machine_of_its_own),
    };
    everywhere.into_iter().chain([here]).collect()
}

async fn limits_are_enforced() {
    let host = Host::start(Network::None).await;
    let version = if std::env::var_os(INSIDE).is_some() { "cgroup v2: " } else { "cgroup v" };
    let notes = host.engine.describe();
    let said = |note: &String| note.starts_with(version) && note.ends_with("freezing are enforced");
    assert!(notes.iter().any(said), "{notes:#?}");
}

/// What the operator reads where the kernel hands nothing down.
async fn a_crowd_is_told() {
    let host = Host::start(Network::None).await;
    let notes = host.engine.describe();
    let said = |note: &String| note.contains("processes are in the group at") && note.contains("nothing is limited");
    assert!(notes.iter().any(said), "{notes:#?}");
    // It runs nevertheless.
    assert_eq!(host.guest().await.attack(&["user"]).await, "993");
}

async fn a_share_of_cpu() {
    let host = Host::start(Network::None).await;
    let mut spec = host.spec();
    spec.vcpus = 0.25;
    let guest = Guest::of(host.engine.create(spec).await.unwrap());
    let (process, _output) = guest.spawn(&[ATTACKER, crate::attacker::PART, "spin"]).await.unwrap();
    let cpu = || guest.sandbox.usage().cpu;
    eventually("the process runs", || cpu() > Duration::from_millis(100)).await;
    let (begin, before) = (Instant::now(), cpu());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let share = (cpu() - before).as_secs_f64() / begin.elapsed().as_secs_f64();
    // How little it gets is the host's business; what was left of a period may be used in the next.
    assert!(share < 0.3, "{share}");
    guest.sandbox.signal(process, sandbox::Signal::Kill).await.unwrap();
}

fn in_a_machine_of_its_own() -> Result<(), Failed> {
    let kernel = match missing() {
        Ok(kernel) => kernel,
        Err(missing) => {
            let missing = format!("SKIPPED {NAME}: needs {missing}");
            if std::env::var_os("EMBERBOX_REQUIRE_ALL").is_some_and(|value| value == "1") {
                return Err(missing.into());
            }
            eprintln!("{missing}");
            return Ok(());
        }
    };
    let directory = tempfile::tempdir()?;
    let disk = disk(directory.path(), &kernel.join("lib/modules"))?;
    let image = only(&kernel.join("boot"), "vmlinuz-")?;
    let output = Command::new("timeout")
        .args(["600", "qemu-system-x86_64", "-M", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "2G"])
        .args(["-display", "none", "-no-reboot", "-serial", "stdio", "-nic", "none", "-kernel"])
        .arg(image)
        .args(["-append", "console=ttyS0 root=/dev/nvme0n1 rw init=/init panic=-1 loglevel=4 mitigations=off"])
        .arg("-drive")
        .arg(format!("if=none,id=disk,format=raw,cache=unsafe,file={}", disk.display()))
        .args(["-device", "nvme,drive=disk,serial=disk"])
        .stdin(std::process::Stdio::null())
        .output()?;
    let console = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let container = ["a_crowd_is_told", "in a container: limits_are_enforced", "in a container: attack_memory_bomb"];
    for name in TESTS.into_iter().chain(container) {
        if !console.lines().any(|line| line.trim_end() == format!("PASSED {name}")) {
            return Err(format!("{name} has not passed inside. The console of the machine:\n{console}").into());
        }
    }
    Ok(())
}

/// The kernel, or what is not here.
fn missing() -> Result<PathBuf, String> {
    for program in PROGRAMS.into_iter().filter(|program| *program != "pasta").chain(["qemu-system-x86_64", "depmod"]) {
        find(program).ok_or_else(|| format!("the program {program}"))?;
    }
    std::env::var_os(KERNEL).map(PathBuf::from).ok_or_else(|| format!("{KERNEL}: Debian's kernel package, unpacked"))
}

/// A disk with this program, what it runs, and the kernel's modules.
fn disk(directory: &Path, modules: &Path) -> Result<PathBuf, Failed> {
    let root = directory.join("root");
    for path in
        ["proc", "sys", "dev", "tmp", "run", "etc", "root", "var/tmp", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64"]
    {
        fs::create_dir_all(root.join(path))?;
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{link}"), root.join(link))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
    fs::write(root.join("names"), TESTS.join(" "))?;
    let own = std::env::current_exe()?;
    libraries(&own, &root)?;
    fs::copy(&own, root.join("tests"))?;
    for (name, script) in [("init", INIT), ("container", CONTAINER), ("run-tests", RUN)] {
        fs::write(root.join(name), script)?;
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755))?;
    }
    for name in PROGRAMS {
        let Some(found) = find(name) else { continue };
        libraries(&found, &root)?;
        fs::copy(&found, root.join("usr/bin").join(name))?;
    }
    // The kernel loads what it lacks itself.
    symlink("../bin/kmod", root.join("usr/sbin/modprobe"))?;
    run(Command::new("cp").arg("-a").arg(modules).arg(root.join("usr/lib/modules")))?;
    let version = only(&root.join("usr/lib/modules"), "")?;
    run(tool("depmod").arg("-b").arg(&root).arg(version.file_name().expect("it has a name")))?;
    let disk = directory.join("disk");
    run(tool("mkfs.ext4").args(["-q", "-d"]).arg(&root).arg(&disk).arg("1500M"))?;
    Ok(disk)
}

/// Copies the libraries of a program to where it looks for them.
fn libraries(program: &Path, root: &Path) -> Result<(), Failed> {
    let listed = Command::new("ldd").arg(program).output()?;
    for word in String::from_utf8_lossy(&listed.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
        let library = Path::new(word);
        let parent = library.parent().expect("it is a file").strip_prefix("/")?;
        fs::create_dir_all(root.join(parent))?;
        fs::copy(library, root.join(parent).join(library.file_name().expect("it is a file")))?;
    }
    Ok(())
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let debians = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].into_iter().map(PathBuf::from);
    debians.chain(std::env::split_paths(&path)).map(|place| place.join(program)).find(|path| path.exists())
}

/// One that Debian keeps where only an administrator's PATH leads; [`missing`] has found it.
fn tool(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| program.into()))
}

/// The one file there whose name begins so.
fn only(directory: &Path, prefix: &str) -> Result<PathBuf, Failed> {
    let there = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
    let found = fs::read_dir(directory)?.flatten().map(|entry| entry.path()).find(there);
    found.ok_or_else(|| format!("nothing called {prefix}… in {}", directory.display()).into())
}

fn run(command: &mut Command) -> Result<(), Failed> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}
