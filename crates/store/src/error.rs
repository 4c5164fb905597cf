//! What can go wrong with the metadata.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::api::Op;

/// A failure of the store. Every message says what was tried, on what, why it failed and, where the operator can do
/// something about it, what.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A precondition did not hold; nothing was written.
    #[error("commit metadata: {kind} {key} was changed by another request")]
    Conflict {
        /// Kind of the record.
        kind: String,
        /// Its key.
        key: String,
    },
    /// The file is there, but is not Emberbox's metadata.
    #[error("open metadata {}: {reason}; move the file away to start empty, or choose another data directory", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is damaged.
    #[error("metadata {} is damaged: {reason}; restore it from a backup, or move it away (with its -wal and -shm files) to start empty", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        reason: String,
    },
    /// It was written by a newer Emberbox, in a way that this one does not understand.
    #[error(
        "open metadata {place}: it has schema {found}, this Emberbox knows {known}; use the newer Emberbox that wrote it"
    )]
    Newer {
        /// The file, or the server.
        place: String,
        /// Its schema.
        found: i64,
        /// The newest that this program can read.
        known: i64,
    },
    /// Another process has it open.
    #[error("open metadata {}: another Emberbox process uses it; stop that one, or choose another data directory", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Anything else: permissions, a full disk, an IO error.
    #[error("{operation} metadata {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The server cannot be reached, or does not answer. Nothing was done. The store goes on connecting by itself.
    #[cfg(feature = "postgres")]
    #[error(
        "{operation} metadata in PostgreSQL at {server}: {reason}; nothing was done. See that the server runs and can be reached from this host; Emberbox connects again by itself"
    )]
    Unavailable {
        /// What was tried.
        operation: &'static str,
        /// Host, port, database and schema.
        server: String,
        /// Why it failed.
        reason: String,
    },
    /// The connection broke when the commit was under way, and whether it was made could not be found out.
    #[cfg(feature = "postgres")]
    #[error(
        "commit metadata in PostgreSQL at {server}: the connection broke before the answer ({reason}); the commit may have been made or not. Read again before you repeat it"
    )]
    Uncertain {
        /// Host, port, database and schema.
        server: String,
        /// What broke the connection, or kept it from being made again.
        reason: String,
    },
    /// The server answers, and refuses. Nothing was done.
    #[cfg(feature = "postgres")]
    #[error("{operation} metadata in PostgreSQL at {server}: {reason}; {remedy}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// Host, port, database and schema.
        server: String,
        /// What the server says.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// What a commit wrote cannot be read by this process, which does not write over it either.
    #[error("this server cannot read what is stored, and does not write over it: {reason}")]
    Unreadable {
        /// Which record, and why.
        reason: String,
    },
    /// The store was closed.
    #[error("the metadata store is closed")]
    Closed,
}

impl StoreError {
    /// Whether the caller may read again and repeat the commit.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }

    /// Of the first op whose precondition did not hold.
    pub(crate) fn conflict(op: &Op) -> Self {
        Self::Conflict { kind: op.kind.to_string(), key: op.key.clone() }
    }

    pub(crate) fn io(
        operation: &'static str,
        path: &Path,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Io { operation, path: path.to_owned(), source: Arc::new(source) }
    }

    /// Tells a damaged file from other failures.
    pub(crate) fn sql(operation: &'static str, path: &Path, error: sqlx::Error) -> Self {
        // Primary result codes of SQLite: 11 is SQLITE_CORRUPT, 26 is SQLITE_NOTADB; extended codes have them in the
        // low byte.
        let code = error.as_database_error().and_then(|e| e.code()).and_then(|code| code.parse::<i64>().ok());
        match code.map(|code| code & 0xff) {
            Some(11 | 26) => Self::Damaged { path: path.to_owned(), reason: error.to_string() },
            _ if matches!(error, sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed) => Self::Closed,
            _ => Self::io(operation, path, error),
        }
    }
}
