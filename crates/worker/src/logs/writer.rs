//! The background thread that owns the segment files.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use super::{GroupId, LogConfig, LogEvent, Shared, StreamId, segment};

/// A group has at least so many segments before the oldest goes, so that retention never takes most of a log at once.
const SEGMENTS: u64 = 8;
/// Files that stay open.
const OPEN_GROUPS: usize = 64;
/// How often age is looked at.
const TIDY_EVERY: Duration = Duration::from_secs(600);
/// Once a line has come, so long are more waited for: under load they come from many sandboxes, and to be woken for each
/// and to write each costs both sides.
const GATHER: Duration = Duration::from_millis(10);
/// Bytes that are gathered at most before they are written.
const GATHER_BYTES: usize = 1 << 20;

pub(super) enum Message {
    Append { stream: Arc<StreamId>, events: Vec<LogEvent>, bytes: usize },
    Flush(oneshot::Sender<()>),
    Delete(GroupId, oneshot::Sender<()>),
}

struct Open {
    file: File,
    directory: PathBuf,
    number: u64,
    size: u64,
    used: u64,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    open: HashMap<GroupId, Open>,
    uses: u64,
    gathered: HashMap<GroupId, Gathered>,
    /// What [`Shared::queued`] counts for them.
    gathered_bytes: usize,
}

/// Lines of one group on their way to its file.
#[derive(Default)]
struct Gathered {
    text: Vec<u8>,
    lines: u64,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, open: HashMap::new(), uses: 0, gathered: HashMap::new(), gathered_bytes: 0 }
    }

    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        self.tidy();
        let mut tidied = Instant::now();
        loop {
            match messages.recv_timeout(TIDY_EVERY) {
                Ok(first) => {
                    if matches!(first, Message::Append { .. }) {
                        std::thread::sleep(GATHER);
                    }
                    std::iter::once(first).chain(messages.try_iter()).for_each(|message| self.take(message));
                    self.write_gathered();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if tidied.elapsed() >= TIDY_EVERY {
                self.tidy();
                tidied = Instant::now();
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Append { stream, events, bytes } => {
                self.gather(&stream, &events);
                self.gathered_bytes += bytes;
                if self.gathered_bytes >= GATHER_BYTES {
                    self.write_gathered();
                }
            }
            Message::Flush(done) => {
                self.write_gathered();
                // A receiver that no longer waits needs no answer.
                let _ = done.send(());
            }
            Message::Delete(group, done) => {
                self.write_gathered();
                self.open.remove(&group);
                let directory = segment::directory(&self.shared.config.dir, &group);
                if let Err(error) = std::fs::remove_dir_all(&directory)
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(%error, directory = %directory.display(), "cannot delete a log group");
                }
                let _ = done.send(());
            }
        }
    }

    fn gather(&mut self, stream: &StreamId, events: &[LogEvent]) {
        if !self.gathered.contains_key(&stream.group) {
            self.gathered.insert(stream.group.clone(), Gathered::default());
        }
        let gathered = self.gathered.get_mut(&stream.group).expect("was inserted above");
        gathered.lines += events.len() as u64;
        for event in events {
            segment::encode(&mut gathered.text, event.timestamp, &stream.stream, &event.message);
        }
        let dropped = self.shared.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let text = format!("[emberbox] {dropped} log lines were dropped because the disk did not keep up");
            let at = events.last().map_or(0, |e| e.timestamp);
            segment::encode(&mut gathered.text, at, &stream.stream, &text);
            // Should the notice be lost, they still count.
            gathered.lines += dropped;
            tracing::warn!(dropped, "function log lines were dropped because the disk did not keep up");
        }
    }

    fn write_gathered(&mut self) {
        for (group, Gathered { text, lines }) in std::mem::take(&mut self.gathered) {
            if let Err(error) = self.write(&group, &text) {
                self.open.remove(&group);
                self.shared.dropped.fetch_add(lines, Ordering::Relaxed);
                tracing::error!(%error, group = group.group, "cannot write the log of a function");
            }
        }
        self.shared.queued.fetch_sub(std::mem::take(&mut self.gathered_bytes), Ordering::Relaxed);
    }

    fn write(&mut self, group: &GroupId, bytes: &[u8]) -> std::io::Result<()> {
        let config = &self.shared.config;
        self.uses += 1;
        if !self.open.contains_key(group) {
            if self.open.len() >= OPEN_GROUPS
                && let Some(oldest) = self.open.iter().min_by_key(|(_, o)| o.used).map(|(id, _)| id.clone())
            {
                self.open.remove(&oldest);
            }
            self.open.insert(group.clone(), Open::group(config, group)?);
        }
        let open = self.open.get_mut(group).expect("was inserted above");
        open.used = self.uses;
        if open.size + bytes.len() as u64 > config.group_bytes / SEGMENTS && open.size > 0 {
            open.rotate(config)?;
        }
        open.file.write_all(bytes)?;
        open.size += bytes.len() as u64;
        Ok(())
    }

    /// Deletes segments that are too old. The newest of a group stays while it is open.
    fn tidy(&mut self) {
        let config = self.shared.config.clone();
        let now = SystemTime::now();
        for (_, directory) in super::query::group_directories(&config.dir) {
            for number in segment::numbers(&directory) {
                let path = segment::path(&directory, number);
                let old = path
                    .metadata()
                    .and_then(|m| m.modified())
                    .is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > config.retention));
                if old {
                    self.open.retain(|_, open| open.directory != directory || open.number != number);
                    if let Err(error) = std::fs::remove_file(&path) {
                        tracing::warn!(%error, path = %path.display(), "cannot delete an old log segment");
                    }
                }
            }
        }
    }
}

impl Open {
    fn group(config: &LogConfig, id: &GroupId) -> std::io::Result<Self> {
        let directory = segment::directory(&config.dir, id);
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join(segment::NAME_FILE), &id.group)?;
        let number = segment::numbers(&directory).last().copied().unwrap_or(1);
        let (file, size) = open_segment(&directory, number)?;
        Ok(Self { file, directory, number, size, used: 0 })
    }

    fn rotate(&mut self, config: &LogConfig) -> std::io::Result<()> {
        self.number += 1;
        (self.file, self.size) = open_segment(&self.directory, self.number)?;
        let mut total = 0;
        for number in segment::numbers(&self.directory).into_iter().rev() {
            let path = segment::path(&self.directory, number);
            total += path.metadata().map(|m| m.len()).unwrap_or_default();
            if number != self.number && total > config.group_bytes - config.group_bytes / SEGMENTS {
                std::fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// Opens for appending. A last line that a crash cut off is ended, so that it does not swallow the next.
fn open_segment(directory: &std::path::Path, number: u64) -> std::io::Result<(File, u64)> {
    use std::io::{Read as _, Seek as _, SeekFrom};

    let path = segment::path(directory, number);
    let mut file = File::options().read(true).append(true).create(true).open(&path)?;
    let mut size = file.metadata()?.len();
    if size > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            size += 1;
        }
    }
    Ok((file, size))
}
