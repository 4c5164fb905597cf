//! Sandboxes that are kept in a snapshot and restored from it, with real guests.

use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sandbox::api::LinkDecoder;
use sandbox::microvm::MicrovmEngine;
use sandbox::{ExitStatus, Listener, Restored, Sandbox, SandboxEngine};

use crate::inside::PART;
use crate::support::{Guest, PROGRAM, read_all, read_now, spec};

/// Keeps it in a new directory, and destroys it.
pub async fn keep(directory: &Path, sandbox: Box<dyn Sandbox>) -> PathBuf {
    let kept = directory.join("state/kept");
    std::fs::DirBuilder::new().mode(0o700).create(&kept).unwrap();
    sandbox.keep(&kept).await.unwrap();
    sandbox.destroy().await;
    kept
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

/// A process waits for an answer; the sandbox is kept, and restored so many times; each time the process asks again, and finds
/// a present of its own.
pub async fn goes_on(engine: &MicrovmEngine, directory: &Path, times: usize) {
    let mut guest = Guest::of(engine.create(spec(directory)).await.unwrap());
    let (text, _) = guest.sh("echo kept > /tmp/note; cat /tmp/note").await;
    assert_eq!(text, "kept\n");
    let first = listener(guest.sandbox.as_ref());
    let (process, output) = guest.spawn(&[PROGRAM, PART, "ask"]).await.unwrap();
    let (question, stream, _) = hear(accept(first).await, LinkDecoder::default()).await;
    assert_eq!(question, "anything new?");
    let kept = keep(directory, guest.sandbox).await;
    assert_eq!(read_now(&output), "asking\n");
    drop((stream, output));
    assert!(kept.join("image0").exists() && kept.join("image1").exists() && kept.join("disk2").exists());

    let mut seen: Vec<String> = Vec::new();
    for _ in 0..times {
        let restored = engine.restore(spec(directory), &kept, &[process]).await.unwrap();
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
        let [time, random, last] = rest.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
        assert_eq!((answer, last), ("a restore", "no"));
        assert!(random.len() == 32 && !seen.contains(&random.to_owned()), "{random}, {seen:?}");
        seen.push(random.to_owned());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert!(now.abs_diff(time.parse().unwrap()) < 60, "{time}, and it is {now}");
        // It is a sandbox as any other, with what it had.
        let (text, status) = guest.sh("cat /tmp/note").await;
        assert_eq!((text.as_str(), status), ("kept\n", ExitStatus::Code(0)));
        guest.sandbox.kill_all().await.unwrap();
        guest.sandbox.destroy().await;
    }
}
