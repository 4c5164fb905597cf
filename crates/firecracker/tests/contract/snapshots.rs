//! Snapshots: what was going on goes on elsewhere.

use std::fs;

use firecracker::api::*;
use firecracker::{Place, Vmm};
use libtest_mimic::Trial;

use crate::guest;
use crate::settings::drive;
use crate::support::{Host, PATIENCE, boot_source, machine, refused, test};

pub fn trials() -> Vec<Trial> {
    vec![
        test("a_snapshot_goes_on_in_other_jails", a_snapshot_goes_on_in_other_jails),
        test("differences", differences),
        test("wrong_snapshots", wrong_snapshots),
    ]
}

pub fn create(snapshot_type: SnapshotType) -> SnapshotCreate {
    SnapshotCreate { snapshot_type, snapshot_path: "state".into(), mem_file_path: "memory".into() }
}

pub fn load() -> SnapshotLoad {
    SnapshotLoad {
        snapshot_path: "state".into(),
        mem_backend: MemoryBackend { backend_type: MemoryBackendType::File, backend_path: "memory".into() },
        enable_diff_snapshots: false,
        resume_vm: false,
        network_overrides: Vec::new(),
    }
}

/// Moves a snapshot out of a jail, readable for others.
pub fn take(host: &Host, vmm: &Vmm) {
    use std::os::unix::fs::PermissionsExt;
    for name in ["state", "memory"] {
        let target = host.directory.path().join(name);
        vmm.jail().take_file(name, &target).unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).unwrap();
    }
}

async fn a_snapshot_goes_on_in_other_jails() {
    let host = Host::start().await;
    let jail = host.jail("origin");
    jail.add(&host.file("kernel.elf", &guest::elf(guest::LETTERS)), "kernel", Place::Link).unwrap();
    jail.create_file("disk", 1 << 20).unwrap();
    let vmm = jail.start().await.unwrap();
    let vsock = Vsock { guest_cid: 3, uds_path: "v.sock".into() };
    vmm.api().put_machine_config(&machine()).await.unwrap();
    vmm.api().put_boot_source(&boot_source()).await.unwrap();
    vmm.api().put_drive(&drive("disk")).await.unwrap();
    vmm.api().put_vsock(&vsock).await.unwrap();
    vmm.api().act(Action::InstanceStart).await.unwrap();
    assert!(vmm.console().wait_for("abcdef", PATIENCE).await);

    refused(vmm.api().create_snapshot(&create(SnapshotType::Full)).await, "");
    vmm.api().pause().await.unwrap();
    vmm.api().create_snapshot(&create(SnapshotType::Full)).await.unwrap();
    take(&host, &vmm);
    assert_eq!(fs::metadata(host.directory.path().join("memory")).unwrap().len(), 32 << 20);
    // The origin goes on too, to the end of its row.
    let last = vmm.console().text().chars().last().unwrap();
    vmm.api().resume().await.unwrap();
    assert!(vmm.console().wait_for("xyzabc", PATIENCE).await);
    vmm.stop().await.unwrap();

    // One snapshot, twice at the same time.
    for resume_vm in [false, true] {
        let jail = host.jail(&format!("copy-{resume_vm}"));
        for name in ["state", "memory"] {
            jail.add(&host.directory.path().join(name), name, Place::Link).unwrap();
        }
        jail.create_file("disk", 1 << 20).unwrap();
        let copy = jail.start().await.unwrap();
        copy.api().load_snapshot(&SnapshotLoad { resume_vm, ..load() }).await.unwrap();
        if !resume_vm {
            assert_eq!(copy.api().instance().await.unwrap().state, State::Paused);
            assert_eq!(copy.console().written(), 0);
            copy.api().resume().await.unwrap();
        }
        let config = copy.api().vm_config().await.unwrap();
        assert_eq!((config.machine_config.mem_size_mib, config.vsock), (32, Some(vsock.clone())));
        assert!(copy.jail().root().join("v.sock").exists());
        let next = if last == 'z' { 'a' } else { (last as u8 + 1) as char };
        assert!(copy.console().wait_for(&next.to_string(), PATIENCE).await);
        // It begins with the letter after the last one before the snapshot; what the pipe still had then is before it.
        let first = copy.console().text().chars().next().unwrap();
        let ahead = (first as u8 + 26 - next as u8) % 26;
        assert!(ahead <= 2, "{last} was followed by {first}");
        assert!(copy.console().wait_for("xyzabc", PATIENCE).await);
        copy.stop().await.unwrap();
    }
}

async fn differences() {
    let host = Host::start().await;
    let vmm = host.running("plain").await;
    vmm.api().pause().await.unwrap();
    refused(vmm.api().create_snapshot(&create(SnapshotType::Diff)).await, "dirty page");
    vmm.stop().await.unwrap();

    let vmm = host.configured("tracked", guest::LETTERS).await;
    vmm.api().put_machine_config(&MachineConfig { track_dirty_pages: true, ..machine() }).await.unwrap();
    vmm.api().act(Action::InstanceStart).await.unwrap();
    assert!(vmm.console().wait_for("abc", PATIENCE).await);
    vmm.api().pause().await.unwrap();
    vmm.api().create_snapshot(&create(SnapshotType::Diff)).await.unwrap();
    use std::os::unix::fs::MetadataExt;
    let memory = fs::metadata(vmm.jail().path("memory").unwrap()).unwrap();
    assert_eq!(memory.len(), 32 << 20);
    assert!(memory.blocks() * 512 < 8 << 20, "it has only what changed: {} blocks", memory.blocks());
}

async fn wrong_snapshots() {
    let host = Host::start().await;
    let vmm = host.vmm("none").await;
    refused(vmm.api().load_snapshot(&load()).await, "No such file");
    vmm.stop().await.unwrap();

    let jail = host.jail("garbage");
    jail.add(&host.file("garbage", &[0x5a; 1 << 16]), "state", Place::Link).unwrap();
    jail.create_file("memory", 32 << 20).unwrap();
    let vmm = jail.start().await.unwrap();
    refused(vmm.api().load_snapshot(&load()).await, "Failed to restore from snapshot");
    vmm.stop().await.unwrap();

    let vmm = host.vmm("configured").await;
    vmm.api().put_machine_config(&machine()).await.unwrap();
    refused(vmm.api().load_snapshot(&load()).await, "not allowed after configuring boot-specific resources");
}
