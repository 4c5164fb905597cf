//! Brings the log into the file, on a thread and a connection of its own, so that the writer does not wait for it.
//!
//! SQLite would do it at the end of a commit, and whoever waits for that would wait for all of the log to be copied and
//! synced. Beside a writer that goes on, a checkpoint never reaches the end of the log, and only then does the log begin anew
//! (SQLite's documentation, "Write-Ahead Logging", 2.3): so the writer copies the little that is left itself, between two
//! commits.

use std::cell::Cell;
use std::io;
use std::sync::mpsc;
use std::thread;

use rusqlite::Connection;
use sqlite_file::SqliteFile;

/// Pages of the log at which a checkpoint begins. A longer log lets it write each page of the file once for many commits.
const BEGIN: i32 = 4000;
/// Pages that are few enough for the writer to copy them.
const REST: i32 = 250;
/// A disk that is slower than the writer does not get more than so many checkpoints beside it, or the log would grow on.
const ROUNDS: u8 = 4;

thread_local! {
    static PAGES: Cell<i32> = const { Cell::new(0) };
}

/// Has the connection's commits tell this thread how long the log is, and make no checkpoints themselves.
pub(super) fn leave_to_us(connection: &Connection) {
    connection.wal_hook(Some(|_, pages| {
        PAGES.set(pages);
        Ok(())
    }));
}

/// Of the writer, whose connections are prepared by [`leave_to_us`].
pub(super) struct Checkpoints {
    plan: Plan,
    asks: Option<mpsc::Sender<()>>,
    /// How many pages of the log are in the file now; nothing if that failed.
    answers: mpsc::Receiver<Option<i32>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Checkpoints {
    /// Starts the thread, which uses `connection`.
    pub(super) fn start(file: SqliteFile, connection: Connection) -> io::Result<Self> {
        let ((asks, asked), (answer, answers)) = (mpsc::channel(), mpsc::channel());
        let serve = move || {
            for () in asked {
                // Nobody there: the writer is ending.
                let _ = answer.send(checkpoint(&file, &connection));
            }
        };
        let thread = thread::Builder::new().name("event-queue-log".to_owned()).spawn(serve)?;
        Ok(Self { plan: Plan::default(), asks: Some(asks), answers, thread: Some(thread) })
    }

    /// After a commit on this thread.
    pub(super) fn committed(&mut self, file: &SqliteFile, connection: &Connection) {
        while let Ok(done) = self.answers.try_recv() {
            self.plan.done_beside(done);
        }
        match self.plan.next(PAGES.get()) {
            Step::Nothing => {}
            Step::Beside => {
                // The thread lives as long as this does.
                let _ = self.asks.as_ref().map(|asks| asks.send(()));
            }
            Step::Rest => {
                checkpoint(file, connection);
            }
        }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.asks = None;
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

/// Copies what it can without waiting for anybody. If it fails all stays in the log, where it is as safe.
fn checkpoint(file: &SqliteFile, connection: &Connection) -> Option<i32> {
    let done = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(2));
    done.inspect_err(|error| {
        tracing::warn!(
            path = %file.path().display(), %error,
            "copy the event queue's log into its file: the log grows, and this is tried again; see to the disk"
        );
    })
    .ok()
}

/// What is to be done about the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Nothing,
    /// A checkpoint on the other thread.
    Beside,
    /// One here.
    Rest,
}

/// When to do what; pages are counted from where the log begins.
#[derive(Debug)]
struct Plan {
    /// The length at which something is to be done.
    at: i32,
    /// The length after the last commit.
    pages: i32,
    /// Of those, so many are in the file.
    copied: i32,
    beside: bool,
    /// Checkpoints beside the writer since the last of its own.
    rounds: u8,
}

impl Default for Plan {
    fn default() -> Self {
        Self { at: BEGIN, pages: 0, copied: 0, beside: false, rounds: 0 }
    }
}

impl Plan {
    fn next(&mut self, pages: i32) -> Step {
        if pages < self.pages {
            *self = Self { beside: self.beside, ..Self::default() };
        }
        self.pages = pages;
        if self.beside || pages < self.at {
            return Step::Nothing;
        }
        if self.rounds == 0 || (pages - self.copied > REST && self.rounds < ROUNDS) {
            self.beside = true;
            return Step::Beside;
        }
        self.wait();
        Step::Rest
    }

    fn done_beside(&mut self, copied: Option<i32>) {
        self.beside = false;
        match copied {
            Some(copied) => {
                self.rounds += 1;
                self.copied = copied;
                self.at = 0;
            }
            None => self.wait(),
        }
    }

    /// Until the log is so much longer, unless it begins anew.
    fn wait(&mut self) {
        self.rounds = 0;
        self.at = self.pages.saturating_add(BEGIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_writer_copies_only_the_rest() {
        let mut plan = Plan::default();
        assert_eq!(plan.next(BEGIN - 1), Step::Nothing);
        assert_eq!(plan.next(BEGIN), Step::Beside);
        assert_eq!(plan.next(BEGIN + 1000), Step::Nothing, "one at a time");
        plan.done_beside(Some(BEGIN));
        assert_eq!(plan.next(BEGIN + 1010), Step::Beside, "too much is left");
        plan.done_beside(Some(BEGIN + 1000));
        assert_eq!(plan.next(BEGIN + 1020), Step::Rest);
        assert_eq!(plan.next(10), Step::Nothing, "the log has begun anew");
        assert_eq!(plan.next(BEGIN), Step::Beside);
        plan.done_beside(None);
        assert_eq!(plan.next(BEGIN + 10), Step::Nothing, "what failed is not tried at once");
        assert_eq!(plan.next(2 * BEGIN), Step::Beside);
    }

    proptest! {
        /// However slow the disk is, the log ends somewhere: where no checkpoint takes longer than 20 commits of 300 pages.
        #[test]
        fn the_log_is_bounded(commits in prop::collection::vec((1..300i32, 0..20u8), 1..400)) {
            let (mut plan, mut pages) = (Plan::default(), 0);
            let (mut began, mut lasts) = (0, 0);
            for (size, slow) in commits {
                pages += size;
                prop_assert!(pages <= BEGIN + (i32::from(ROUNDS) * 20 + 1) * 300);
                match plan.next(pages) {
                    Step::Nothing => {}
                    Step::Beside => (began, lasts) = (pages, slow),
                    Step::Rest => pages = 0,
                }
                if plan.beside && lasts == 0 {
                    plan.done_beside(Some(began));
                }
                lasts = lasts.saturating_sub(1);
            }
        }
    }
}
