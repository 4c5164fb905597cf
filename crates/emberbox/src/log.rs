//! Where the server's log lines go on their way to stderr.
//!
//! A line costs the one who logs it a copy into memory. A thread writes what has come together every few milliseconds, so
//! that neither a slow terminal nor the waking of another thread is on the path of an invocation.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;

/// How long lines are gathered.
const GATHER: Duration = Duration::from_millis(10);
/// Most bytes that wait; lines beyond it are dropped, and a line says how many.
const LIMIT: usize = 8 << 20;

/// Takes lines. Cheap to clone.
#[derive(Clone)]
pub struct Writer(Arc<Shared>);

/// Dropping it writes what is left.
pub struct Flush {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    text: Vec<u8>,
    dropped: u64,
    closed: bool,
}

/// A writer of lines to `out`.
pub fn gathered(out: impl Write + Send + 'static) -> (Writer, Flush) {
    let shared = Arc::new(Shared::default());
    let thread = std::thread::Builder::new()
        .name("log".to_owned())
        .spawn({
            let shared = Arc::clone(&shared);
            move || shared.write_to(out)
        })
        .ok();
    (Writer(Arc::clone(&shared)), Flush { shared, thread })
}

impl Shared {
    fn write_to(&self, mut out: impl Write) {
        loop {
            let mut waiting = self.waiting.lock();
            while waiting.text.is_empty() && !waiting.closed {
                self.changed.wait(&mut waiting);
            }
            if !waiting.closed {
                drop(waiting);
                std::thread::sleep(GATHER);
                waiting = self.waiting.lock();
            }
            let Waiting { text, dropped, closed } = std::mem::take(&mut *waiting);
            waiting.closed = closed;
            drop(waiting);
            // There is nobody to tell that the log cannot be written.
            let _ = out.write_all(&text);
            if dropped > 0 {
                let _ = writeln!(out, "{dropped} log lines were dropped: they came faster than they could be written");
            }
            let _ = out.flush();
            if closed {
                return;
            }
        }
    }
}

impl Write for &Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.0.waiting.lock();
        if waiting.text.len() + line.len() > LIMIT {
            waiting.dropped += 1;
        } else {
            let first = waiting.text.is_empty();
            waiting.text.extend_from_slice(line);
            if first {
                self.0.changed.notify_one();
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Writer {
    type Writer = &'a Writer;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        self.shared.waiting.lock().closed = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<Vec<u8>>>);

    impl Write for Out {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_is_written_in_order_by_the_end() {
        let out = Out::default();
        let (writer, flush) = gathered(out.clone());
        let expected: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        for line in expected.split_inclusive('\n') {
            writer.make_writer().write_all(line.as_bytes()).unwrap();
        }
        drop(flush);
        assert_eq!(String::from_utf8(out.0.lock().clone()).unwrap(), expected);
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let out = Out::default();
        let (writer, flush) = gathered(out.clone());
        writer.make_writer().write_all(&vec![b'x'; LIMIT + 1]).unwrap();
        drop(flush);
        assert!(String::from_utf8_lossy(&out.0.lock()).contains("1 log lines were dropped"));
    }
}
