//! What the disk gives: an SQLite writer that keeps events durably in groups and does nothing else. Its ids are ordered by
//! time and its log is brought into the file every 4,000 pages, as in the event queue: what costs the queue nothing is no
//! handicap of the writer beside it.

use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// Events that share a transaction and a sync at most, as in the event queue.
const GROUP: usize = 256;

/// One table, one insert per event.
pub struct Writer {
    requests: mpsc::Sender<(Uuid, Vec<u8>, oneshot::Sender<()>)>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// In a file that is not there yet.
    pub fn open(path: &Path) -> Self {
        let mut connection = Connection::open(path).expect("opens");
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000;
                 PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -16384;
                 CREATE TABLE events (id BLOB PRIMARY KEY, body BLOB NOT NULL)",
            )
            .expect("runs");
        let (requests, mut received) = mpsc::channel::<(Uuid, Vec<u8>, oneshot::Sender<()>)>(1024);
        let thread = std::thread::spawn(move || {
            let mut group = Vec::with_capacity(GROUP);
            while received.blocking_recv_many(&mut group, GROUP) > 0 {
                let transaction = connection.transaction().expect("begins");
                for (id, body, _) in &group {
                    let mut insert = transaction.prepare_cached("INSERT INTO events VALUES (?, ?)").expect("prepares");
                    insert.execute(params![&id.as_bytes()[..], body]).expect("inserts");
                }
                transaction.commit().expect("commits");
                for (_, _, done) in group.drain(..) {
                    let _ = done.send(());
                }
            }
        });
        Self { requests, thread }
    }

    /// Each of `callers` waits for its event before it sends the next, for so many events or so long, whichever is over
    /// first. How many there were, and how long it took.
    pub async fn accept(&self, callers: u32, events: u32, time: Duration, body: &[u8]) -> (u64, Duration) {
        let started = Instant::now();
        let callers: Vec<_> = (0..callers)
            .map(|_| {
                let (requests, body) = (self.requests.clone(), body.to_vec());
                tokio::spawn(async move {
                    let mut kept = 0;
                    while kept < events / callers && started.elapsed() < time {
                        let (done, answer) = oneshot::channel();
                        requests.send((Uuid::now_v7(), body.clone(), done)).await.expect("the writer is there");
                        answer.await.expect("an answer");
                        kept += 1;
                    }
                    u64::from(kept)
                })
            })
            .collect();
        let mut kept = 0;
        for caller in callers {
            kept += caller.await.expect("no panic");
        }
        (kept, started.elapsed())
    }

    /// Ends the thread.
    pub fn close(self) {
        drop(self.requests);
        self.thread.join().expect("no panic");
    }
}
