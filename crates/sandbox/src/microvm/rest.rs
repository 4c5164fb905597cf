//! When a VM runs, and how one that nobody needs gives memory back.
//!
//! A frozen VM stands still, and so it keeps what memory its kernel has free. Some time after it was frozen, it is let run
//! once for half a minute in which its kernel tells which memory that is, while no process of the sandbox runs: for a
//! function nothing happens. Memory that was given back is there again when somebody writes to it.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use domain::SandboxId;
use guest::vm::protocol::Order;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::control::Control;
use super::machine::Machine;

/// Runs and pauses one VM.
pub struct Rest {
    machine: Arc<dyn Machine>,
    control: Arc<Control>,
    answer_limit: Duration,
    state: Mutex<State>,
    /// Somebody needs it while it gives memory back.
    needed: Notify,
}

#[derive(Debug, Default)]
struct State {
    frozen: bool,
    /// How often it was frozen.
    times: u64,
    /// It runs although it is frozen.
    giving: bool,
}

impl Rest {
    /// Of one that runs.
    pub fn new(machine: Arc<dyn Machine>, control: Arc<Control>, answer_limit: Duration) -> Arc<Self> {
        Arc::new(Self { machine, control, answer_limit, state: Mutex::default(), needed: Notify::new() })
    }

    /// Stops it. Quick.
    pub fn freeze(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.frozen = true;
        state.times += 1;
        // Or else it is stopped when it has given back.
        if state.giving { Ok(()) } else { self.machine.pause() }
    }

    /// Lets it run. Quick. Without effect if it is not frozen.
    pub fn thaw(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if !std::mem::take(&mut state.frozen) {
            return Ok(());
        }
        if state.giving {
            self.needed.notify_one();
            return Ok(());
        }
        self.machine.resume()
    }

    /// Has it give memory back once, whenever it was frozen for `after`; until its end, which is also that of one that does not
    /// answer.
    pub async fn keep(self: Arc<Self>, id: SandboxId, after: Duration, end: CancellationToken) {
        let Some(takes) = self.machine.gives_back() else { return };
        let kept = async {
            let mut given = 0;
            loop {
                let times = self.state.lock().times;
                tokio::time::sleep(after).await;
                if times == given || !self.begin(times)? {
                    continue;
                }
                given = times;
                self.order(&Order::Rest).await?;
                tokio::select! {
                    () = tokio::time::sleep(takes) => {}
                    () = self.needed.notified() => {}
                }
                self.order(&Order::Wake).await?;
                self.finish()?;
                // Of somebody who came when it was over: not for the next time.
                tokio::select! {
                    biased;
                    () = self.needed.notified() => {}
                    () = std::future::ready(()) => {}
                }
            }
        };
        let kept: io::Result<Infallible> = tokio::select! {
            kept = kept => kept,
            () = end.cancelled() => return,
        };
        let Err(error) = kept;
        if !end.is_cancelled() {
            tracing::warn!(sandbox = %id, %error, "a microVM does not give memory back, and is killed");
            end.cancel();
        }
    }

    /// Lets it run if it is frozen still.
    fn begin(&self, times: u64) -> io::Result<bool> {
        let mut state = self.state.lock();
        if !state.frozen || state.times != times {
            return Ok(false);
        }
        self.machine.resume()?;
        state.giving = true;
        Ok(true)
    }

    /// As it was, or as it is wanted by now.
    fn finish(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.giving = false;
        if state.frozen { self.machine.pause() } else { Ok(()) }
    }

    async fn order(&self, order: &Order) -> io::Result<()> {
        let answer = self.control.ask(order, self.answer_limit).await?;
        answer.map(drop).map_err(|failure| io::Error::other(failure.operation))
    }
}
