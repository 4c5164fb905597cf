//! Sandboxes that are kept and restored, with real guests: all but what takes the machine's memory to the disk and back.

use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::SystemTime;

use libtest_mimic::Trial;
use sandbox::api::LinkDecoder;
use sandbox::microvm::{MicrovmConfig, MicrovmEngine};
use sandbox::process::{Egress, Network};
use sandbox::{ExitStatus, Listener, Restored, Sandbox, SandboxEngine, SandboxSpec};

use crate::inside::PART;
use crate::support::{Guest, PROGRAM, build_root, config, read_all, read_now, spec, test, test_with};

pub fn tests() -> Vec<Trial> {
    vec![
        test("in_place_goes_on_where_it_was_kept", goes_on),
        test("in_place_what_cannot_be_restored_is_an_error", cannot_be_restored),
        test_with(&["nft"], "in_place_restored_with_addresses_of_its_own", has_addresses),
    ]
}

struct Host {
    engine: MicrovmEngine,
    directory: tempfile::TempDir,
}

impl Host {
    fn start(network: Network) -> Self {
        let directory = tempfile::tempdir().unwrap();
        build_root(directory.path());
        let config = MicrovmConfig { network, ..config(directory.path()) };
        Self { engine: MicrovmEngine::start_in_place(config).unwrap(), directory }
    }

    fn spec(&self) -> SandboxSpec {
        spec(self.directory.path())
    }

    /// Keeps it in a new directory, and destroys it.
    async fn keep(&self, sandbox: Box<dyn Sandbox>) -> std::path::PathBuf {
        let kept = self.directory.path().join("kept");
        std::fs::DirBuilder::new().mode(0o700).create(&kept).unwrap();
        sandbox.keep(&kept).await.unwrap();
        sandbox.destroy().await;
        kept
    }
}

fn listener(sandbox: &dyn Sandbox) -> UnixListener {
    let Some(Listener::Unix(listener)) = sandbox.take_listener(9001) else { panic!("no listener") };
    listener.set_nonblocking(false).unwrap();
    listener
}

/// What comes next on a connection of the guest's.
async fn hear(mut stream: UnixStream, mut decoder: LinkDecoder) -> (String, UnixStream, LinkDecoder) {
    tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        while text.is_empty() {
            let mut buffer = [0; 256];
            let read = stream.read(&mut buffer).unwrap();
            assert_ne!(read, 0, "the connection has ended");
            let length = decoder.decode(&mut buffer[..read]);
            text.extend_from_slice(&buffer[..length]);
        }
        (String::from_utf8(text).unwrap(), stream, decoder)
    })
    .await
    .unwrap()
}

async fn accept(listener: UnixListener) -> UnixStream {
    tokio::task::spawn_blocking(move || listener.accept().unwrap().0).await.unwrap()
}

async fn goes_on() {
    let host = Host::start(Network::None);
    let mut guest = Guest::of(host.engine.create(host.spec()).await.unwrap());
    let (text, _) = guest.sh("echo kept > /tmp/note; cat /tmp/note").await;
    assert_eq!(text, "kept\n");
    let first = listener(guest.sandbox.as_ref());
    let (process, output) = guest.spawn(&[PROGRAM, PART, "ask"]).await.unwrap();
    let (question, stream, _) = hear(accept(first).await, LinkDecoder::default()).await;
    assert_eq!(question, "anything new?");
    let kept = host.keep(guest.sandbox).await;
    assert_eq!(read_now(&output), "asking\n");
    drop((stream, output));
    assert!(kept.join("image0").exists() && kept.join("image1").exists() && kept.join("disk2").exists());

    let restored = host.engine.restore(host.spec(), &kept, &[process]).await.unwrap();
    let Restored { sandbox, mut running } = restored;
    let mut guest = Guest::of(sandbox);
    let second = listener(guest.sandbox.as_ref());
    let (question, mut stream, decoder) = hear(accept(second).await, LinkDecoder::default()).await;
    assert_eq!(question, "anything new?", "it is asked again");
    stream.write_all(b"a restore").unwrap();
    let (question, mut stream, _) = hear(stream, decoder).await;
    assert_eq!(question, "nothing else?");
    stream.write_all(b"no").unwrap();
    let ours = running.remove(0);
    assert_eq!(ours.id, process);
    assert_eq!(guest.exit_of(process).await, (ExitStatus::Code(0), false));
    let said = read_all(ours.output).await;
    let (answer, rest) = said.split_once("; ").unwrap();
    let (time, last) = rest.split_once('\n').unwrap();
    assert_eq!((answer, last), ("a restore", "no\n"));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(time.parse().unwrap()) < 60, "{time}, and it is {now}");
    // It is a sandbox as any other, with what it had.
    let (text, status) = guest.sh("cat /tmp/note").await;
    assert_eq!((text.as_str(), status), ("kept\n", ExitStatus::Code(0)));
    guest.sandbox.kill_all().await.unwrap();
    guest.sandbox.destroy().await;
    host.engine.stop().await;
}

async fn cannot_be_restored() {
    let host = Host::start(Network::None);
    let guest = Guest::of(host.engine.create(host.spec()).await.unwrap());
    let kept = host.keep(guest.sandbox).await;
    let restored = host.engine.restore(host.spec(), &kept, &[]).await.unwrap();
    restored.sandbox.destroy().await;
    for path in [kept.as_path(), host.directory.path()] {
        let error = host.engine.restore(host.spec(), path, &[]).await.err().unwrap().to_string();
        assert!(error.contains("snapshot"), "{error}");
    }
    host.engine.stop().await;
}

async fn has_addresses() {
    let host = Host::start(Network::Egress(Egress::default()));
    // Another that has the first address as long as the one is restored.
    let mut guest = Guest::of(host.engine.create(host.spec()).await.unwrap());
    let (before, _) = guest.inside(&["address"]).await;
    let kept = host.keep(guest.sandbox).await;
    let other = Guest::of(host.engine.create(host.spec()).await.unwrap());
    let restored = host.engine.restore(host.spec(), &kept, &[]).await.unwrap();
    let mut guest = Guest::of(restored.sandbox);
    let (after, status) = guest.inside(&["address"]).await;
    assert_eq!(status, ExitStatus::Code(0), "{after}");
    assert_ne!(before, after, "the address that another sandbox has by now");
    other.sandbox.destroy().await;
    guest.sandbox.destroy().await;
    host.engine.stop().await;
}
