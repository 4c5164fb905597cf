//! Snapshots and restores where no engine can restore a machine that runs a kernel: all of it but the machine's memory on its
//! way to the disk and back.

use libtest_mimic::Trial;
use sandbox::SandboxEngine;
use sandbox::microvm::{MicrovmConfig, MicrovmEngine};
use sandbox::process::{Egress, Network};

use crate::kept;
use crate::network::PROGRAMS;
use crate::support::{Guest, build_root, config, spec, test, test_with};

pub fn tests() -> Vec<Trial> {
    vec![
        test("in_place_goes_on_where_it_was_kept", goes_on),
        test("in_place_what_cannot_be_restored_is_an_error", cannot_be_restored),
        test_with(PROGRAMS, "in_place_restored_with_addresses_of_its_own", has_addresses),
    ]
}

struct Host {
    engine: MicrovmEngine,
    directory: tempfile::TempDir,
}

fn start(network: Network) -> Host {
    let directory = tempfile::tempdir().unwrap();
    build_root(directory.path());
    let config = MicrovmConfig { network, ..config(directory.path()) };
    Host { engine: MicrovmEngine::start_in_place(config).unwrap(), directory }
}

async fn goes_on() {
    let Host { engine, directory } = start(Network::None);
    kept::goes_on(&engine, directory.path(), 1).await;
    engine.stop().await;
}

async fn cannot_be_restored() {
    let Host { engine, directory } = start(Network::None);
    let spec = || spec(directory.path());
    let kept = kept::keep(directory.path(), engine.create(spec()).await.unwrap()).await;
    let restored = engine.restore(spec(), &kept, &[]).await.unwrap();
    restored.sandbox.destroy().await;
    for path in [kept.as_path(), directory.path()] {
        let error = engine.restore(spec(), path, &[]).await.err().unwrap().to_string();
        assert!(error.contains("snapshot"), "{error}");
    }
    engine.stop().await;
}

async fn has_addresses() {
    let Host { engine, directory } = start(Network::Egress(Egress::default()));
    let spec = || spec(directory.path());
    let mut guest = Guest::of(engine.create(spec()).await.unwrap());
    let (before, _) = guest.inside(&["address"]).await;
    let kept = kept::keep(directory.path(), guest.sandbox).await;
    // Which has the first address by now.
    let other = Guest::of(engine.create(spec()).await.unwrap());
    let mut guest = Guest::of(engine.restore(spec(), &kept, &[]).await.unwrap().sandbox);
    let (after, _) = guest.inside(&["address"]).await;
    assert_ne!(before, after);
    after.trim().parse::<std::net::Ipv4Addr>().unwrap();
    other.sandbox.destroy().await;
    guest.sandbox.destroy().await;
    engine.stop().await;
}
