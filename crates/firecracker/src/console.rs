//! The last that Firecracker wrote: its log, and what its guest wrote to the serial port.

use std::collections::VecDeque;
use std::io::PipeReader;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::error::{Doing, Result};

/// The last bytes, and how many there were. A guest can write as much as it likes: it is read and forgotten.
#[derive(Clone, Debug)]
pub struct Console {
    kept: Arc<Mutex<Kept>>,
    /// All bytes so far; closed at the end of the output.
    written: watch::Receiver<u64>,
}

#[derive(Debug)]
struct Kept {
    limit: usize,
    bytes: VecDeque<u8>,
}

impl Kept {
    fn push(&mut self, mut new: &[u8]) {
        new = &new[new.len().saturating_sub(self.limit)..];
        let over = (self.bytes.len() + new.len()).saturating_sub(self.limit);
        self.bytes.drain(..over);
        self.bytes.extend(new);
    }

    fn text(&self) -> String {
        let (front, back) = self.bytes.as_slices();
        String::from_utf8_lossy(&[front, back].concat()).into_owned()
    }
}

impl Console {
    /// Of a VM that has none.
    pub(crate) fn none() -> Self {
        Self { kept: Arc::new(Mutex::new(Kept { limit: 0, bytes: VecDeque::new() })), written: watch::channel(0).1 }
    }

    /// Reads a pipe to its end, which is that of all who write to it.
    pub(crate) fn read(pipe: PipeReader, limit: usize) -> Result<Self> {
        let mut pipe = pipe::Receiver::from_owned_fd(OwnedFd::from(pipe)).doing(|| "reading a console".to_owned())?;
        let kept = Arc::new(Mutex::new(Kept { limit, bytes: VecDeque::new() }));
        let (sender, written) = watch::channel(0);
        let console = Self { kept: kept.clone(), written };
        // Ends with the VM.
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
                kept.lock().push(&buffer[..count]);
                sender.send_modify(|written| *written += count as u64);
            }
        });
        Ok(console)
    }

    /// The last that was written, with `�` for what is not UTF-8.
    pub fn text(&self) -> String {
        self.kept.lock().text()
    }

    /// How many bytes there were in all.
    pub fn written(&self) -> u64 {
        *self.written.borrow()
    }

    /// Waits until `wanted` is among what is kept. False if it was not within the limit, or the output has ended.
    pub async fn wait_for(&self, wanted: &str, limit: Duration) -> bool {
        let mut written = self.written.clone();
        let found = written.wait_for(|_| self.text().contains(wanted));
        matches!(tokio::time::timeout(limit, found).await, Ok(Ok(_)))
    }

    /// Waits until all is read that will be written; for what a process said that has ended.
    pub(crate) async fn ended(&self, limit: Duration) {
        let mut written = self.written.clone();
        let _ = tokio::time::timeout(limit, written.wait_for(|_| false)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_last_bytes_are_kept(limit in 0usize..20, parts in prop::collection::vec("[a-z]{0,30}", 0..10)) {
            let mut kept = Kept { limit, bytes: VecDeque::new() };
            for part in &parts {
                kept.push(part.as_bytes());
            }
            let all = parts.concat();
            prop_assert_eq!(kept.text(), &all[all.len().saturating_sub(limit)..]);
        }
    }

    #[tokio::test]
    async fn a_flood_is_read_and_forgotten() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let console = Console::read(reader, 100).unwrap();
        let flood = tokio::task::spawn_blocking(move || {
            for _ in 0..1000 {
                writer.write_all(&[b'x'; 1000]).unwrap();
            }
            writer.write_all(b"the end").unwrap();
        });
        assert!(console.wait_for("the end", Duration::from_secs(30)).await);
        flood.await.unwrap();
        console.ended(Duration::from_secs(30)).await;
        assert_eq!((console.written(), console.text().len()), (1_000_007, 100));
        assert!(!console.wait_for("more", Duration::from_secs(30)).await, "the output has ended");
    }
}
