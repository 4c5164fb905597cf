//! The life of a sandbox.

use libtest_mimic::Trial;
use sandbox::{ExitStatus, SandboxEngine, SandboxError};

use crate::support::{Guest, Host, read_all, test};

/// First argument of the program as a server that will be killed.
pub const SERVER: &str = "server";

pub fn run_server() {}

pub fn tests() -> Vec<Trial> {
    vec![
        test("microvm_boots_and_is_gone_when_destroyed", boots_and_is_gone),
        test("microvm_runs_processes", runs_processes),
    ]
}

async fn boots_and_is_gone() {
    let host = Host::start().await;
    let begin = std::time::Instant::now();
    let guest = host.guest().await;
    eprintln!("booted in {:?}", begin.elapsed());
    let vms = host.directory.path().join("state/vms");
    assert_eq!(std::fs::read_dir(&vms).unwrap().count(), 1);
    guest.sandbox.destroy().await;
    assert_eq!(std::fs::read_dir(&vms).unwrap().count(), 0);
    host.engine.stop().await;
}

async fn runs_processes() {
    let host = Host::start().await;
    let mut guest: Guest = host.guest().await;
    let (text, status) = guest.sh("echo out; echo err >&2; exit 3").await;
    assert_eq!((text.as_str(), status), ("out\nerr\n", ExitStatus::Code(3)));
    let (text, _) = guest.sh("cat text; echo; cat /etc/hosts; echo kept >/tmp/f && cat /tmp/f; echo x > text").await;
    assert!(text.contains("the code of this function") && text.contains("192.0.2.7 db.internal"), "{text}");
    assert!(text.contains("kept") && text.contains("Read-only file system"), "{text}");
    let (text, _) = guest.run(&["/bin/cat", "/proc/self/status"]).await;
    assert!(text.contains("Uid:\t993\t993\t993\t993") && text.contains("CapEff:\t0000000000000000"), "{text}");

    let (process, output) = guest.spawn(&["/bin/sleep", "1000"]).await.unwrap();
    guest.sandbox.signal(process, sandbox::Signal::Terminate).await.unwrap();
    assert_eq!(guest.exit_of(process).await, (ExitStatus::Signal(15), false));
    assert_eq!(read_all(output).await, "");

    match guest.spawn(&["/no/such/program"]).await {
        Err(SandboxError::Exec { program, source }) => {
            assert_eq!((program.as_str(), source.kind()), ("/no/such/program", std::io::ErrorKind::NotFound));
        }
        other => panic!("{other:?}"),
    }
    let (text, _) = guest.sh("echo still here").await;
    assert_eq!(text, "still here\n");
    let (process, _output) = guest.spawn(&["/bin/sleep", "1000"]).await.unwrap();
    guest.sandbox.kill_all().await.unwrap();
    assert_eq!(guest.exit_of(process).await.0, ExitStatus::Signal(9));
    host.engine.stop().await;
}
