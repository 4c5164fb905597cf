//! The guest kernel that Emberbox uses: booted, paused, kept in a snapshot, loaded in another jail, resumed. Where KVM
//! emulates guests, as on the machines that run CI, a kernel needs a CPU template without the instructions that the
//! emulator lacks, and Firecracker ends at the first that no template masks (`fwait`), before user space; what was not
//! seen is said by name.

use std::path::{Path, PathBuf};

use firecracker::api::*;
use firecracker::{Bitmap, CpuConfig, CpuidModifier, CpuidRegister, Place, Register, Vmm};
use libtest_mimic::Trial;

use crate::settings::{drive, limiter};
use crate::snapshots::{create, load, take};
use crate::support::{Host, PATIENCE, boot_source, machine, test_with};

pub fn trials() -> Vec<Trial> {
    vec![test_with("a_kernel_boots_and_outlives_a_snapshot", missing, a_kernel_boots_and_outlives_a_snapshot)]
}

fn kernel() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest-kernel/vmlinux");
    std::env::var_os("EMBERBOX_TEST_KERNEL").map_or(built, PathBuf::from)
}

fn missing() -> Option<String> {
    let kernel = kernel();
    (!kernel.is_file()).then(|| format!("a guest kernel at {} or in EMBERBOX_TEST_KERNEL", kernel.display()))
}

/// What a kernel says that has come to its end without a root file system.
const END: &str = "Unable to mount root fs";

/// Without what KVM's emulator does not know: cmpxchg16b (13) and popcnt (23). Without xsave (26) a kernel was found to use
/// it all the same, so that is for its command line (`noxsave`).
fn emulatable() -> CpuConfig {
    let bitmap = Bitmap::new(0, 1 << 13 | 1 << 23);
    let register = CpuidRegister { register: Register::Ecx, bitmap };
    let leaf = CpuidModifier { leaf: "0x1".into(), subleaf: "0x0".into(), flags: 0, modifiers: vec![register] };
    CpuConfig { cpuid_modifiers: vec![leaf], ..CpuConfig::default() }
}

async fn a_kernel_boots_and_outlives_a_snapshot() {
    let host = Host::start().await;
    let jail = host.jail("origin");
    jail.add(&kernel(), "kernel", Place::Copy).unwrap();
    jail.create_file("disk", 1 << 20).unwrap();
    let vmm = jail.start().await.unwrap();
    let api = vmm.api();
    api.put_machine_config(&MachineConfig { mem_size_mib: 128, ..machine() }).await.unwrap();
    api.put_cpu_config(&emulatable()).await.unwrap();
    // At its end it panics, as there is no root file system, and stays like that.
    let boot_args = "console=ttyS0 earlyprintk=ttyS0 nosmp noxsave panic=0 no_timer_check";
    api.put_boot_source(&BootSource { boot_args: Some(boot_args.into()), ..boot_source() }).await.unwrap();
    api.put_drive(&Drive { is_root_device: true, rate_limiter: limiter(), ..drive("disk") }).await.unwrap();
    api.put_vsock(&Vsock { guest_cid: 3, uds_path: "v.sock".into() }).await.unwrap();
    api.put_balloon(&Balloon { deflate_on_oom: true, ..Balloon::default() }).await.unwrap();
    api.put_entropy(&Entropy::default()).await.unwrap();
    api.act(Action::InstanceStart).await.unwrap();
    saw(&vmm, "Linux version 6.").await;
    saw(&vmm, "root=/dev/vda").await;

    api.pause().await.unwrap();
    api.create_snapshot(&create(SnapshotType::Full)).await.unwrap();
    take(&host, &vmm);
    // Where KVM works, the whole boot may have taken less than the pause.
    let was_at_end = vmm.console().text().contains(END);
    vmm.stop().await.unwrap();

    let jail = host.jail("copy");
    for name in ["state", "memory"] {
        jail.add(&host.directory.path().join(name), name, Place::Link).unwrap();
    }
    jail.create_file("disk", 1 << 20).unwrap();
    let copy = jail.start().await.unwrap();
    copy.api().load_snapshot(&load()).await.unwrap();
    assert_eq!(copy.api().instance().await.unwrap().state, State::Paused);
    copy.api().resume().await.unwrap();
    if !was_at_end {
        saw(&copy, "Memory: ").await;
        assert!(!copy.console().text().contains("Linux version"), "it goes on: {}", copy.console().text());
    }
    if !was_at_end && !copy.console().wait_for(END, PATIENCE).await {
        let text = copy.console().text();
        let last = text.lines().rfind(|line| line.starts_with('[')).unwrap_or_default();
        eprintln!("NOT SHOWN HERE: the end of a kernel's boot under Firecracker; it came to: {last}");
    }
    // User space is for the tests of the crate `sandbox` (`firecracker_runs_sandboxes`).
    copy.stop().await.unwrap();
}

async fn saw(vmm: &Vmm, text: &str) {
    assert!(vmm.console().wait_for(text, PATIENCE).await, "no {text:?} in: {}", vmm.console().text());
}
