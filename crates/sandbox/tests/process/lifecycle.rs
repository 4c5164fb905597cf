//! Making, using, freezing and destroying sandboxes, and what is left of them.

use std::time::Instant;

use libtest_mimic::Trial;
use sandbox::process::Network;
use sandbox::{ExitStatus, SandboxEngine};

use crate::support::{Host, test};

pub const ENGINE: &str = "engine";

pub fn run_engine() {}

pub fn tests() -> Vec<Trial> {
    vec![test("runs_a_process", runs_a_process)]
}

async fn runs_a_process() {
    let host = Host::start(Network::None).await;
    for note in host.engine.describe() {
        eprintln!("{note}");
    }
    let started = Instant::now();
    let mut guest = host.guest().await;
    eprintln!("created in {:?}", started.elapsed());
    let started = Instant::now();
    let (output, status) = guest.run(&["/bin/sh", "-c", "id; pwd; ls -la / /tmp /dev /proc; cat /etc/hosts; cat /proc/self/status; mount; df -h /tmp"]).await;
    eprintln!("ran in {:?}\n{output}", started.elapsed());
    assert_eq!(status, ExitStatus::Code(0));
    let started = Instant::now();
    guest.sandbox.destroy().await;
    eprintln!("destroyed in {:?}", started.elapsed());
    host.engine.stop().await;
    eprintln!("stopped in {:?}", started.elapsed());
}
