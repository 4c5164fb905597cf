//! What Firecracker refuses, and in which words: those that `Error`'s advice goes by, and those that a change of its API
//! would change.

use firecracker::api::*;
use firecracker::{Bitmap, CpuConfig, CpuidModifier, CpuidRegister, Error, Register};
use http::Method;
use libtest_mimic::Trial;
use serde_json::json;

use crate::guest;
use crate::settings::{drive, limiter};
use crate::support::{Host, boot_source, machine, refused, test};

pub fn trials() -> Vec<Trial> {
    vec![
        test("unknown_fields", unknown_fields),
        test("unknown_requests", unknown_requests),
        test("wrong_machines", wrong_machines),
        test("wrong_devices", wrong_devices),
        test("wrong_cpu_templates", wrong_cpu_templates),
        test("too_early", too_early),
        test("too_late", too_late),
    ]
}

async fn unknown_fields() {
    let host = Host::start().await;
    let jail = host.jail("vm-1");
    jail.create_file("disk", 4096).unwrap();
    let vmm = jail.start().await.unwrap();
    let mut bodies = vec![
        (Method::PUT, "/machine-config", json!(machine())),
        (Method::PUT, "/boot-source", json!(boot_source())),
        (Method::PUT, "/drives/disk", json!(drive("disk"))),
        (Method::PUT, "/network-interfaces/eth0", json!({"iface_id": "eth0", "host_dev_name": "tap0"})),
        (Method::PUT, "/vsock", json!(Vsock { guest_cid: 3, uds_path: "v.sock".into() })),
        (Method::PUT, "/balloon", json!(Balloon::default())),
        (Method::PATCH, "/balloon", json!(BalloonUpdate { amount_mib: 1 })),
        (Method::PATCH, "/balloon/statistics", json!(BalloonStatsUpdate { stats_polling_interval_s: 1 })),
        (Method::PUT, "/entropy", json!(Entropy::default())),
        (Method::PUT, "/logger", json!(Logger::default())),
        (Method::PUT, "/actions", json!(Action::FlushMetrics)),
        (Method::PATCH, "/vm", json!({"state": "Paused"})),
        (Method::PUT, "/cpu-config", json!(CpuConfig::default())),
        (Method::PUT, "/snapshot/create", json!({"snapshot_path": "s", "mem_file_path": "m"})),
        (
            Method::PUT,
            "/snapshot/load",
            json!({"snapshot_path": "s", "mem_backend": {"backend_type": "File", "backend_path": "m"}}),
        ),
        (Method::PATCH, "/drives/disk", json!({"drive_id": "disk"})),
        (Method::PATCH, "/network-interfaces/eth0", json!({"iface_id": "eth0"})),
    ];
    for (method, path, body) in &mut bodies {
        body["emberbox"] = json!(1);
        let error = vmm.api().request(method.clone(), path, Some(body)).await.expect_err(path);
        let fault = error.fault_message().unwrap_or_default();
        assert!(fault.contains("unknown field `emberbox`"), "{path}: {fault}");
        let text = error.to_string();
        assert!(text.contains(&format!("{method} {path}")) && text.contains("a field is unknown"), "{text}");
    }
}

async fn unknown_requests() {
    let host = Host::start().await;
    let vmm = host.vmm("vm-1").await;
    let api = vmm.api();
    refused(api.request(Method::GET, "/emberbox", None).await, "Invalid request method and/or path");
    refused(api.request(Method::PATCH, "/vsock", Some(&json!({}))).await, "Invalid request method and/or path");
    refused(api.request(Method::PUT, "/vsock", None).await, "Empty PUT request");
    refused(api.request(Method::GET, "/version", Some(&json!({}))).await, "GET request cannot have a body");
    refused(
        api.request(Method::PUT, "/actions", Some(&json!({"action_type": "Halt"}))).await,
        "unknown variant `Halt`",
    );
    refused(api.request(Method::PATCH, "/vm", Some(&json!({"state": "Frozen"}))).await, "unknown variant `Frozen`");
    assert!(matches!(api.put_drive(&drive("../vsock")).await, Err(Error::Invalid { .. })));
    assert_eq!(api.instance().await.unwrap().state, State::NotStarted);
}

async fn wrong_machines() {
    let host = Host::start().await;
    let vmm = host.vmm("vm-1").await;
    let api = vmm.api();
    let put = async |config| api.put_machine_config(&config).await;
    for vcpu_count in [0, 33] {
        refused(put(MachineConfig { vcpu_count, ..machine() }).await, "number of vCPUs");
    }
    refused(put(MachineConfig { vcpu_count: 3, smt: true, ..machine() }).await, "number of vCPUs");
    refused(put(MachineConfig { mem_size_mib: 0, ..machine() }).await, "memory size (MiB) is either 0");
    refused(put(MachineConfig { mem_size_mib: 33, huge_pages: HugePages::TwoMiB, ..machine() }).await, "page size");
    put(MachineConfig { huge_pages: HugePages::TwoMiB, ..machine() }).await.unwrap();
    refused(api.put_balloon(&Balloon::default()).await, "huge pages support is incompatible with memory ballooning");
    let text = json!({"vcpu_count": "1", "mem_size_mib": 32});
    refused(api.request(Method::PUT, "/machine-config", Some(&text)).await, "invalid type: string \"1\"");
    refused(api.request(Method::PUT, "/machine-config", Some(&json!({"vcpu_count": 1}))).await, "missing field");
    // Nothing of what was refused was taken.
    assert_eq!(api.machine_config().await.unwrap().vcpu_count, 1);
}

async fn wrong_devices() {
    let host = Host::start().await;
    let jail = host.jail("vm-1");
    jail.create_file("disk", 4096).unwrap();
    jail.create_file("other", 4096).unwrap();
    let vmm = jail.start().await.unwrap();
    let api = vmm.api();
    // A path of the host means nothing inside.
    let outside = host.file("outside", b"");
    refused(
        api.put_drive(&Drive { path_on_host: outside.display().to_string(), ..drive("disk") }).await,
        "No such file or directory",
    );
    let body = json!(drive("disk"));
    refused(api.request(Method::PUT, "/drives/other", Some(&body)).await, "does not match");
    refused(api.request(Method::PUT, "/drives/a-b", Some(&body)).await, "alphanumeric characters and underscores");
    api.put_drive(&Drive { is_root_device: true, ..drive("disk") }).await.unwrap();
    refused(api.put_drive(&Drive { is_root_device: true, ..drive("other") }).await, "root block device already exists");

    let interface =
        |id: &str| NetworkInterface { iface_id: id.into(), host_dev_name: "a-tap".into(), ..Default::default() };
    let wrong_mac = NetworkInterface { guest_mac: Some("12:34".into()), ..interface("eth0") };
    refused(api.put_network_interface(&wrong_mac).await, "MAC");
    let too_long = NetworkInterface { host_dev_name: "a-name-of-more-than-15".into(), ..interface("eth0") };
    refused(api.put_network_interface(&too_long).await, "Invalid interface name");

    refused(
        api.put_boot_source(&BootSource { kernel_image_path: "none".into(), ..boot_source() }).await,
        "No such file",
    );
    refused(api.put_metrics(&Metrics { metrics_path: "none".into() }).await, "No such file or directory");
    refused(api.put_logger(&Logger { log_path: Some("none/log".into()), ..Default::default() }).await, "No such file");
    refused(api.put_balloon(&Balloon { amount_mib: 1 << 20, ..Default::default() }).await, "too large");
    refused(api.balloon().await, "No balloon device found");
    let vsock = json!({"guest_cid": -1, "uds_path": "v.sock"});
    refused(api.request(Method::PUT, "/vsock", Some(&vsock)).await, "invalid value: integer `-1`");
}

async fn wrong_cpu_templates() {
    let host = Host::start().await;
    let vmm = host.configured("vm-1", guest::LETTERS).await;
    let api = vmm.api();
    let body = json!({"cpuid_modifiers": [
        {"leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers": [{"register": "ecx", "bitmap": "0b2"}]},
    ]});
    refused(api.request(Method::PUT, "/cpu-config", Some(&body)).await, "bitmap");
    let capability = CpuConfig { kvm_capabilities: vec!["100000".into()], ..Default::default() };
    api.put_cpu_config(&capability).await.unwrap();
    refused(api.act(Action::InstanceStart).await, "KVM");
    // A leaf that no processor has is found out at the start; Firecracker ends then.
    let vmm = host.configured("vm-2", guest::LETTERS).await;
    let register = CpuidRegister { register: Register::Eax, bitmap: Bitmap::new(1, 0) };
    let leaf = CpuidModifier { leaf: "0x7fff0000".into(), subleaf: "0x0".into(), flags: 0, modifiers: vec![register] };
    vmm.api().put_cpu_config(&CpuConfig { cpuid_modifiers: vec![leaf], ..Default::default() }).await.unwrap();
    refused(vmm.api().act(Action::InstanceStart).await, "CPUID");
}

async fn too_early() {
    let host = Host::start().await;
    let vmm = host.vmm("vm-1").await;
    let api = vmm.api();
    let early = "not supported before starting the microVM";
    refused(api.pause().await, early);
    refused(api.resume().await, early);
    refused(api.act(Action::SendCtrlAltDel).await, early);
    refused(api.act(Action::FlushMetrics).await, early);
    refused(api.balloon_stats().await, early);
    refused(api.patch_balloon(&BalloonUpdate { amount_mib: 1 }).await, early);
    refused(api.patch_balloon_stats(&BalloonStatsUpdate { stats_polling_interval_s: 1 }).await, early);
    refused(api.patch_drive(&DriveUpdate { drive_id: "disk".into(), ..Default::default() }).await, early);
    let interface = NetworkInterfaceUpdate { iface_id: "eth0".into(), ..Default::default() };
    refused(api.patch_network_interface(&interface).await, early);
    let snapshot = SnapshotCreate {
        snapshot_type: SnapshotType::Full,
        snapshot_path: "state".into(),
        mem_file_path: "memory".into(),
    };
    refused(api.create_snapshot(&snapshot).await, early);
    refused(api.act(Action::InstanceStart).await, "Cannot start microvm without kernel configuration");
}

async fn too_late() {
    let host = Host::start().await;
    let vmm = host.running("vm-1").await;
    let api = vmm.api();
    let late = "not supported after starting the microVM";
    refused(api.put_machine_config(&machine()).await, late);
    refused(api.put_boot_source(&boot_source()).await, late);
    refused(api.put_cpu_config(&CpuConfig::default()).await, late);
    refused(api.put_drive(&drive("kernel")).await, late);
    let interface = NetworkInterface { iface_id: "eth0".into(), host_dev_name: "tap".into(), ..Default::default() };
    refused(api.put_network_interface(&interface).await, late);
    refused(api.put_vsock(&Vsock { guest_cid: 3, uds_path: "v.sock".into() }).await, late);
    refused(api.put_balloon(&Balloon::default()).await, late);
    refused(api.put_entropy(&Entropy { rate_limiter: limiter() }).await, late);
    refused(api.act(Action::InstanceStart).await, late);
    refused(api.load_snapshot(&crate::snapshots::load()).await, late);
    assert_eq!(api.instance().await.unwrap().state, State::Running);
}
