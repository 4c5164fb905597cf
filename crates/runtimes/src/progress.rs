//! How an installation tells what it is doing.

use tokio::sync::mpsc::UnboundedSender;

/// Receives the steps of an installation, for a progress bar or a log.
pub trait Progress: Send + Sync {
    /// A new step has begun, e.g. `installing boto3==1.44.8`.
    fn step(&self, what: &str);
    /// So much of the step is done, where that is known.
    fn amount(&self, _done: u64, _total: u64) {}
}

/// Shows nothing.
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _what: &str) {}
}

/// What [`Forward`] sends.
pub(crate) enum Event {
    Step(String),
    Amount(u64, u64),
}

/// Carries the calls from the blocking thread that installs to the task that waits for it. Unbounded, since an
/// installation has a few hundred events and must not wait for a terminal.
pub(crate) struct Forward(pub UnboundedSender<Event>);

impl Progress for Forward {
    fn step(&self, what: &str) {
        // Nobody listens any more: the caller went away, and the installation ends on its own.
        let _ = self.0.send(Event::Step(what.to_owned()));
    }

    fn amount(&self, done: u64, total: u64) {
        let _ = self.0.send(Event::Amount(done, total));
    }
}

impl Event {
    pub(crate) fn replay(self, to: &dyn Progress) {
        match self {
            Self::Step(what) => to.step(&what),
            Self::Amount(done, total) => to.amount(done, total),
        }
    }
}
