//! When a VM runs, and how one that nobody needs gives memory back.
//!
//! A frozen VM stands still, and so it keeps what memory its kernel has free. Some time after it was frozen, it is let run
//! once for half a minute in which its kernel tells which memory that is, while no process of the sandbox runs: the guest's
//! agent holds them, which is the first that it hears, and they stay held until the VM is needed again. Memory that was given back is there again when somebody writes to it.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
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
    /// Its processes are held, or about to be, and it runs although it is frozen.
    giving: bool,
    /// Of one that gives: it stands still nevertheless, before its agent has been told and when it has given.
    still: bool,
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
            if std::mem::take(&mut state.still) {
                self.machine.resume()?;
            }
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
                if times == given || !self.begin(times) {
                    continue;
                }
                given = times;
                {
                    // On its way before the VM runs. Nobody waits for the answer, and the host may be busy.
                    let mut rest = pin!(self.order(&Order::Rest, takes));
                    let asked = poll_fn(|context| Poll::Ready(rest.as_mut().poll(context))).await;
                    self.go()?;
                    match asked {
                        Poll::Ready(answer) => answer?,
                        Poll::Pending => rest.await?,
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(takes) => self.halt()?,
                    () = self.needed.notified() => {}
                }
                // There may be a permit of somebody who came and went.
                while self.state.lock().still {
                    self.needed.notified().await;
                }
                self.order(&Order::Wake, self.answer_limit).await?;
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

    /// Whether it is frozen still, and so begins to give.
    fn begin(&self, times: u64) -> bool {
        let mut state = self.state.lock();
        let begins = state.frozen && state.times == times;
        if begins {
            (state.giving, state.still) = (true, true);
        }
        begins
    }

    /// Lets it run, unless somebody has done so.
    fn go(&self) -> io::Result<()> {
        if std::mem::take(&mut self.state.lock().still) { self.machine.resume() } else { Ok(()) }
    }

    /// Lets it stand still again, unless somebody needs it.
    fn halt(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.frozen {
            self.machine.pause()?;
            state.still = true;
        }
        Ok(())
    }

    /// As it was, or as it is wanted by now.
    fn finish(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.giving = false;
        if state.frozen { self.machine.pause() } else { Ok(()) }
    }

    async fn order(&self, order: &Order, limit: Duration) -> io::Result<()> {
        let answer = self.control.ask(order, limit).await?;
        answer.map(drop).map_err(|failure| io::Error::other(failure.operation))
    }
}
