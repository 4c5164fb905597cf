//! QEMU's monitor protocol, as far as drives take it: lines of JSON on a socket pair, and descriptors beside them.
//!
//! The other end is as hostile as the guest that may have taken QEMU over: what it says is bounded in length and time, and
//! nothing follows from it but that a command was done or was not.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Interest};
use tokio::net::UnixStream;

use super::machine::Drive;

/// QEMU's longest line here is its greeting, of 200 bytes.
const LONGEST: u64 = 64 << 10;
/// For a few commands together, each of which takes a fraction of a millisecond.
const PATIENCE: Duration = Duration::from_secs(10);

/// The way to one QEMU.
#[derive(Debug)]
pub struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// This end of it, and QEMU's. Within a tokio runtime.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((Self(BufReader::new(UnixStream::from_std(ours)?)), theirs.into()))
    }

    /// Puts other contents in the place of those of the drives 0, 1 and so on, which [`medium`] has described. The guest
    /// must not use them meanwhile, and is not told. To be called once.
    pub async fn exchange(&mut self, drives: &[Drive]) -> io::Result<()> {
        let exchanged = async {
            // Its greeting.
            self.line().await?;
            self.command("qmp_capabilities", json!({}), None).await?;
            for (number, drive) in drives.iter().enumerate() {
                self.command("add-fd", json!({ "fdset-id": number }), Some(drive.file.as_fd())).await?;
                let file = json!({
                    "driver": "file", "node-name": format!("n{number}"), "filename": format!("/dev/fdset/{number}"),
                    "read-only": !drive.writable, "locking": "off", "discard": "unmap",
                });
                self.command("blockdev-add", file, None).await?;
                let medium = json!({
                    "driver": "raw", "node-name": node(number), "file": format!("n{number}"),
                    "read-only": !drive.writable, "discard": "unmap",
                });
                self.command("blockdev-reopen", json!({ "options": [medium] }), None).await?;
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, exchanged).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn command(&mut self, name: &str, arguments: Value, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let command = format!("{}\n", json!({ "execute": name, "arguments": arguments }));
        self.send(command.as_bytes(), file).await?;
        let answer = loop {
            let answer = self.line().await?;
            if answer.get("event").is_none() {
                break answer;
            }
        };
        match answer.get("error") {
            None => Ok(()),
            Some(error) => Err(io::Error::other(format!("QEMU refuses {name}: {error}"))),
        }
    }

    async fn send(&mut self, mut bytes: &[u8], mut file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let stream = self.0.get_ref();
        while !bytes.is_empty() {
            let write = || {
                let files: Vec<_> = file.into_iter().collect();
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !files.is_empty() {
                    control.push(SendAncillaryMessage::ScmRights(&files));
                }
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                Ok(rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut control, flags)?)
            };
            let sent = stream.async_io(Interest::WRITABLE, write).await?;
            // It went with the first byte.
            file = None;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    async fn line(&mut self) -> io::Result<Value> {
        let mut line = Vec::new();
        (&mut self.0).take(LONGEST).read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&line)?)
    }
}

/// QEMU's name of a drive's contents.
pub fn node(number: usize) -> String {
    format!("d{number}")
}

/// Arguments of a drive's contents that can be exchanged later: a layer that does nothing, over the file.
pub fn medium(number: usize, file: &str, writable: bool) -> [String; 2] {
    let read_only = if writable { "off" } else { "on" };
    [
        format!("driver=file,node-name=f{number},filename={file},read-only={read_only},locking=off,discard=unmap"),
        format!("driver=raw,node-name={},file=f{number},read-only={read_only},discard=unmap", node(number)),
    ]
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// What comes of an exchange with a QEMU that says this.
    async fn exchange(said: &'static [u8]) -> io::Result<()> {
        let (mut monitor, theirs) = Monitor::pair().unwrap();
        let qemu = std::thread::spawn(move || {
            let mut stream = StdStream::from(theirs);
            let _ = stream.write_all(said);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let file = std::fs::File::open("/dev/null").unwrap();
        let exchanged = monitor.exchange(&[Drive { file, writable: false }]).await;
        drop(monitor);
        qemu.join().unwrap();
        exchanged
    }

    #[tokio::test]
    async fn what_qemu_says_is_believed_within_bounds() {
        let done = b"{\"QMP\": {}}\n{\"return\": {}}\n{\"event\": \"X\"}\n{\"return\": {}}\n{\"return\": {}}\n{\"return\": {}}\n";
        exchange(done).await.unwrap();
        let refused =
            exchange(b"{\"QMP\": {}}\n{\"return\": {}}\n{\"error\": {\"desc\": \"no\"}}\n").await.unwrap_err();
        assert!(refused.to_string().contains("refuses add-fd") && refused.to_string().contains("no"), "{refused}");
        assert_eq!(exchange(b"{\"QMP\": {}}\n").await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(exchange(b"hello\n").await.is_err());
        let endless: &[u8] = Box::leak(vec![b' '; 1 << 20].into_boxed_slice());
        assert_eq!(exchange(endless).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "too long a line");
    }
}
