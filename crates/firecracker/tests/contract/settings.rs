//! What Firecracker takes, and gives back as it was sent.

use firecracker::api::*;
use firecracker::{Bitmap, CpuConfig, CpuidModifier, CpuidRegister, MsrModifier, Register, Version};
use http::Method;
use libtest_mimic::Trial;
use serde_json::Value;

use crate::support::{Host, boot_source, machine, test};

pub fn trials() -> Vec<Trial> {
    vec![
        test("version_and_state", version_and_state),
        test("defaults", defaults),
        test("every_setting_comes_back", every_setting_comes_back),
        test("settings_are_replaced", settings_are_replaced),
    ]
}

async fn version_and_state() {
    let host = Host::start().await;
    let vmm = host.vmm("vm-1").await;
    let version = vmm.api().version().await.unwrap();
    assert_eq!(version, host.jailer.version());
    assert!(version >= Version::MINIMUM);
    let expected = InstanceInfo {
        id: "vm-1".into(),
        state: State::NotStarted,
        vmm_version: version.to_string(),
        app_name: "Firecracker".into(),
    };
    assert_eq!(vmm.api().instance().await.unwrap(), expected);
    vmm.stop().await.unwrap();
}

async fn defaults() {
    let host = Host::start().await;
    let vmm = host.vmm("vm-1").await;
    let config = vmm.api().vm_config().await.unwrap();
    assert_eq!(config.machine_config, MachineConfig { mem_size_mib: 128, ..machine() });
    assert_eq!(vmm.api().machine_config().await.unwrap(), config.machine_config);
    assert!(config.drives.is_empty() && config.network_interfaces.is_empty() && config.vsock.is_none());
}

pub fn bucket(size: u64, one_time_burst: Option<u64>) -> Option<TokenBucket> {
    Some(TokenBucket { size, one_time_burst, refill_time: 100 })
}

pub fn limiter() -> Option<RateLimiter> {
    Some(RateLimiter { bandwidth: bucket(1 << 20, Some(1 << 10)), ops: bucket(1000, None) })
}

pub fn drive(id: &str) -> Drive {
    Drive {
        drive_id: id.into(),
        path_on_host: id.into(),
        is_root_device: false,
        is_read_only: false,
        partuuid: None,
        cache_type: CacheType::Unsafe,
        io_engine: IoEngine::Sync,
        rate_limiter: None,
    }
}

/// Sends one of everything, and compares it with `GET /vm/config`: by our types, and by what is in neither's words.
async fn every_setting_comes_back() {
    let host = Host::start().await;
    let jail = host.jail("vm-1");
    for name in ["root", "scratch", "kernel", "initrd", "metrics", "log"] {
        jail.create_file(name, 1 << 20).unwrap();
    }
    let vmm = jail.start().await.unwrap();
    let api = vmm.api();
    let cpu = CpuConfig {
        kvm_capabilities: vec!["!56".into()],
        cpuid_modifiers: vec![CpuidModifier {
            leaf: "0x1".into(),
            subleaf: "0x0".into(),
            flags: 0,
            modifiers: vec![CpuidRegister { register: Register::Ecx, bitmap: Bitmap::new(1 << 31, 1 << 13) }],
        }],
        msr_modifiers: vec![MsrModifier { addr: "0x10a".into(), bitmap: Bitmap::new(0, u64::MAX) }],
    };
    let sent = VmConfig {
        balloon: Some(Balloon { amount_mib: 8, deflate_on_oom: true, stats_polling_interval_s: 1 }),
        drives: vec![
            Drive {
                is_root_device: true,
                is_read_only: true,
                partuuid: Some("0eaa91a0-01".into()),
                rate_limiter: limiter(),
                ..drive("root")
            },
            Drive { cache_type: CacheType::Writeback, ..drive("scratch") },
        ],
        boot_source: BootSource {
            initrd_path: Some("initrd".into()),
            boot_args: Some(format!("console=ttyS0 {QUIET_SERIAL}")),
            ..boot_source()
        },
        cpu_config: Some(cpu),
        logger: None,
        machine_config: MachineConfig { vcpu_count: 2, smt: true, track_dirty_pages: true, ..machine() },
        metrics: None,
        network_interfaces: Vec::new(),
        vsock: Some(Vsock { guest_cid: 3, uds_path: "v.sock".into() }),
        entropy: Some(Entropy { rate_limiter: limiter() }),
    };
    api.put_machine_config(&sent.machine_config).await.unwrap();
    api.put_boot_source(&sent.boot_source).await.unwrap();
    api.put_cpu_config(sent.cpu_config.as_ref().unwrap()).await.unwrap();
    for drive in &sent.drives {
        api.put_drive(drive).await.unwrap();
    }
    api.put_vsock(sent.vsock.as_ref().unwrap()).await.unwrap();
    api.put_balloon(&sent.balloon.unwrap()).await.unwrap();
    api.put_entropy(&sent.entropy.unwrap()).await.unwrap();
    api.put_metrics(&Metrics { metrics_path: "metrics".into() }).await.unwrap();
    let logger = Logger {
        log_path: Some("log".into()),
        level: Some(LogLevel::Debug),
        show_level: Some(true),
        show_log_origin: Some(true),
        module: Some("api_server".into()),
    };
    api.put_logger(&logger).await.unwrap();

    assert_eq!(api.balloon().await.unwrap(), sent.balloon.unwrap());
    let received = api.vm_config().await.unwrap();
    let raw = api.request(Method::GET, "/vm/config", None).await.unwrap();
    assert_same(&serde_json::to_value(&received).unwrap(), &raw, "/vm/config");
    // Firecracker 1.12 does not tell these four, though its API description has them.
    let told = VmConfig { cpu_config: sent.cpu_config.clone(), logger: None, metrics: None, ..received };
    assert_eq!(told, sent);
}

/// Whether our types lose nothing of an answer but nulls.
fn assert_same(ours: &Value, theirs: &Value, at: &str) {
    match (ours, theirs) {
        (_, Value::Null) => {}
        (Value::Object(ours), Value::Object(theirs)) => {
            for (name, value) in theirs {
                assert_same(ours.get(name).unwrap_or(&Value::Null), value, &format!("{at}.{name}"));
            }
        }
        (Value::Array(ours), Value::Array(theirs)) if ours.len() == theirs.len() => {
            ours.iter().zip(theirs).for_each(|(ours, theirs)| assert_same(ours, theirs, at));
        }
        _ => assert_eq!(ours, theirs, "{at}"),
    }
}

/// Until the start, a setting of the same name takes the place of the former.
async fn settings_are_replaced() {
    let host = Host::start().await;
    let jail = host.jail("vm-1");
    jail.create_file("disk", 1 << 20).unwrap();
    let vmm = jail.start().await.unwrap();
    vmm.api().put_drive(&drive("disk")).await.unwrap();
    vmm.api().put_drive(&Drive { is_read_only: true, ..drive("disk") }).await.unwrap();
    vmm.api().put_machine_config(&MachineConfig { mem_size_mib: 64, ..machine() }).await.unwrap();
    vmm.api().put_machine_config(&machine()).await.unwrap();
    let config = vmm.api().vm_config().await.unwrap();
    assert_eq!(config.drives, [Drive { is_read_only: true, ..drive("disk") }]);
    assert_eq!(config.machine_config, machine());
}
