//! VMs from their start to their end.

use std::time::Duration;

use firecracker::api::*;
use firecracker::{Error, Place};
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::guest;
use crate::settings::{drive, limiter};
use crate::support::{Host, PATIENCE, boot_source, has_ended, machine, refused, spec, test};

pub fn trials() -> Vec<Trial> {
    vec![
        test("boots_and_writes_to_its_console", boots_and_writes_to_its_console),
        test("a_console_is_bounded_or_absent", a_console_is_bounded_or_absent),
        test("a_paused_vm_stands_still", a_paused_vm_stands_still),
        test("devices_change_while_it_runs", devices_change_while_it_runs),
        test("metrics_and_log", metrics_and_log),
        test("a_guest_that_reboots_ends_it", a_guest_that_reboots_ends_it),
        test("a_vmm_that_is_killed", a_vmm_that_is_killed),
        test("a_vmm_that_hangs", a_vmm_that_hangs),
    ]
}

async fn boots_and_writes_to_its_console() {
    let host = Host::start().await;
    let vmm = host.running("vm-1").await;
    assert!(vmm.console().wait_for("abcdefghij", PATIENCE).await, "{}", vmm.console().text());
    assert_eq!(vmm.api().instance().await.unwrap().state, State::Running);
    vmm.api().act(Action::SendCtrlAltDel).await.unwrap();
    assert!(vmm.runs());
    vmm.stop().await.unwrap();
}

async fn a_console_is_bounded_or_absent() {
    let host = Host::start().await;
    let kernel = host.file("kernel.elf", &guest::elf(guest::LETTERS));
    for console_bytes in [7, 0] {
        let id = format!("vm-{console_bytes}");
        let jail = host.jailer.jail(firecracker::JailSpec { console_bytes, ..spec(&id) }).unwrap();
        jail.add(&kernel, "kernel", Place::Link).unwrap();
        let vmm = jail.start().await.unwrap();
        vmm.api().put_machine_config(&machine()).await.unwrap();
        vmm.api().put_boot_source(&boot_source()).await.unwrap();
        vmm.api().act(Action::InstanceStart).await.unwrap();
        let expected = if console_bytes == 0 { "" } else { "tuvwxyz" };
        assert_eq!(vmm.console().wait_for("tuvwxyz", PATIENCE).await, console_bytes != 0);
        assert_eq!(vmm.console().text().len(), expected.len());
        assert!(vmm.runs());
    }
}

async fn a_paused_vm_stands_still() {
    let host = Host::start().await;
    let vmm = host.running("vm-1").await;
    for _ in 0..2 {
        vmm.api().pause().await.unwrap();
        assert_eq!(vmm.api().instance().await.unwrap().state, State::Paused);
    }
    // Whatever was in the pipe when it was paused is read before a request has its answer, twice.
    let written = vmm.console().written();
    for _ in 0..20 {
        vmm.api().instance().await.unwrap();
    }
    tokio::time::timeout(Duration::from_millis(300), vmm.ended()).await.expect_err("it lives");
    assert_eq!(vmm.console().written(), written);
    for _ in 0..2 {
        vmm.api().resume().await.unwrap();
        assert_eq!(vmm.api().instance().await.unwrap().state, State::Running);
    }
    assert!(vmm.console().wait_for("xyzabc", PATIENCE).await, "it goes on where it was: {}", vmm.console().text());
}

async fn devices_change_while_it_runs() {
    let host = Host::start().await;
    let jail = host.jail("vm-1");
    jail.add(&host.file("kernel.elf", &guest::elf(guest::LETTERS)), "kernel", Place::Link).unwrap();
    jail.create_file("disk", 1 << 20).unwrap();
    jail.create_file("larger", 2 << 20).unwrap();
    let vmm = jail.start().await.unwrap();
    let api = vmm.api();
    api.put_machine_config(&machine()).await.unwrap();
    api.put_boot_source(&boot_source()).await.unwrap();
    api.put_drive(&drive("disk")).await.unwrap();
    api.put_balloon(&Balloon { stats_polling_interval_s: 1, ..Default::default() }).await.unwrap();
    api.act(Action::InstanceStart).await.unwrap();

    let update = |path: Option<&str>| DriveUpdate {
        drive_id: "disk".into(),
        path_on_host: path.map(str::to_owned),
        rate_limiter: limiter(),
    };
    api.patch_drive(&update(Some("larger"))).await.unwrap();
    api.patch_drive(&update(None)).await.unwrap();
    let config = api.vm_config().await.unwrap();
    assert_eq!((&*config.drives[0].path_on_host, config.drives[0].rate_limiter), ("larger", limiter()));
    refused(api.patch_drive(&update(Some("none"))).await, "No such file or directory");
    refused(api.patch_drive(&DriveUpdate { drive_id: "other".into(), ..update(None) }).await, "");
    let interface =
        NetworkInterfaceUpdate { iface_id: "eth0".into(), rx_rate_limiter: limiter(), ..Default::default() };
    refused(api.patch_network_interface(&interface).await, "");

    // This guest has no driver for the balloon.
    refused(api.patch_balloon(&BalloonUpdate { amount_mib: 8 }).await, "not activated");
    assert_eq!(api.balloon_stats().await.unwrap().actual_mib, 0);
    refused(api.patch_balloon_stats(&BalloonStatsUpdate { stats_polling_interval_s: 0 }).await, "cannot be enabled");
    api.patch_balloon_stats(&BalloonStatsUpdate { stats_polling_interval_s: 2 }).await.unwrap();
    assert_eq!(api.balloon().await.unwrap().stats_polling_interval_s, 2);
}

async fn metrics_and_log() {
    let host = Host::start().await;
    let jail = host.jail("vm-1");
    jail.add(&host.file("kernel.elf", &guest::elf(guest::LETTERS)), "kernel", Place::Link).unwrap();
    jail.create_file("metrics", 0).unwrap();
    jail.create_file("log", 0).unwrap();
    let vmm = jail.start().await.unwrap();
    let api = vmm.api();
    let logger = Logger { log_path: Some("log".into()), level: Some(LogLevel::Info), ..Default::default() };
    api.put_logger(&logger).await.unwrap();
    api.put_metrics(&Metrics { metrics_path: "metrics".into() }).await.unwrap();
    refused(api.put_metrics(&Metrics { metrics_path: "metrics".into() }).await, "initialize the metrics system");
    api.put_machine_config(&machine()).await.unwrap();
    api.put_boot_source(&boot_source()).await.unwrap();
    api.act(Action::InstanceStart).await.unwrap();
    api.act(Action::FlushMetrics).await.unwrap();
    let metrics = std::fs::read_to_string(vmm.jail().path("metrics").unwrap()).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert!(last["put_api_requests"]["actions_count"].as_u64().is_some(), "{last}");
    let log = std::fs::read_to_string(vmm.jail().path("log").unwrap()).unwrap();
    assert!(log.contains("The API server received a Put request on \"/machine-config\""), "{log}");
}

async fn a_guest_that_reboots_ends_it() {
    let host = Host::start().await;
    let vmm = host.configured("vm-1", guest::RESET).await;
    vmm.api().act(Action::InstanceStart).await.unwrap();
    tokio::time::timeout(PATIENCE, vmm.ended()).await.unwrap();
    assert!(!vmm.runs());
    let error = vmm.api().instance().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("GET /"), "{error}");
    vmm.stop().await.unwrap();
}

async fn a_vmm_that_is_killed() {
    let host = Host::start().await;
    let vmm = host.running("vm-1").await;
    let root = vmm.jail().root();
    kill_process(Pid::from_raw(vmm.pid()).unwrap(), Signal::KILL).unwrap();
    tokio::time::timeout(PATIENCE, vmm.ended()).await.unwrap();
    assert!(matches!(vmm.api().pause().await, Err(Error::Unreachable { .. })));
    vmm.stop().await.unwrap();
    assert!(!root.exists());
    // Its id is free.
    host.running("vm-1").await.stop().await.unwrap();
}

async fn a_vmm_that_hangs() {
    let host = Host::start().await;
    let vmm = host.running("vm-1").await;
    let pid = Pid::from_raw(vmm.pid()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let error = vmm.api().instance().await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    vmm.stop().await.unwrap();
    assert!(has_ended(pid.as_raw_nonzero().get()), "it is gone");
}
