//! What happened, one line each. Two runs of one seed have the same.

use std::fmt::Write as _;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock;

/// The event log. Cheap to clone.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<String>>);

impl Log {
    /// Adds a line with the simulated time.
    pub fn line(&self, line: std::fmt::Arguments<'_>) {
        tracing::debug!("{:.3} {line}", clock::now().as_secs_f64());
        // Writing to a string does not fail.
        let _ = writeln!(self.0.lock(), "{:>9.3} {line}", clock::now().as_secs_f64());
    }

    /// All of it.
    pub fn take(&self) -> String {
        std::mem::take(&mut self.0.lock())
    }
}
