//! Claims, fences, and which manager hears of which sandbox. No IO: whoever calls holds a lock.
//!
//! ```text
//!  claim(epoch, managers) ──► fence of each covered sandbox = max(fence, epoch); a stream that hears of them
//!  init(manager, epoch)   ──► refused below the highest claim that covers the function; else known, with that fence
//!  invoke(epoch)          ──► refused below the sandbox's fence
//!  answered, idle, dead   ──► to every stream that covers the sandbox; the fence ends with the sandbox
//! ```
//!
//! Two claims can cover one function while managers' views differ. Both hear of its sandboxes then, and the fence lets only the newer
//! one's leases through.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use domain::{FunctionVersion, RetireReason, SandboxId, SandboxState};
use tokio::sync::mpsc;

use super::Claim;

/// What a stream can lag behind, in events, before it ends: a second of a busy host. Its manager begins a new one.
pub(super) const QUEUE: usize = 8_192;
/// Managers whose last claim is remembered. Those beyond are the longest dead.
const CLAIMS: usize = 256;

/// What becomes of a sandbox.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Answered(SandboxId),
    Idle(SandboxId),
    Dead(SandboxId, RetireReason),
    /// There is one more that the manager does not know.
    Adopted(SandboxState),
}

#[derive(Default)]
pub(super) struct Hub {
    /// The last of each manager.
    claims: HashMap<Arc<str>, Arc<Claim>>,
    sandboxes: HashMap<SandboxId, Known>,
    streams: Vec<Stream>,
    streams_so_far: u64,
}

struct Known {
    /// ARN of its function.
    function: Arc<str>,
    version: Arc<FunctionVersion>,
    fence: u64,
    /// Its Init runs: the worker may not have it among its own yet.
    starting: bool,
}

impl Known {
    fn new(version: &Arc<FunctionVersion>, fence: u64, starting: bool) -> Self {
        Self { function: version.arn.text().into(), version: Arc::clone(version), fence, starting }
    }
}

struct Stream {
    number: u64,
    claim: Arc<Claim>,
    /// The sandboxes that it covers.
    own: HashSet<SandboxId>,
    queue: mpsc::Sender<Event>,
}

impl Hub {
    /// Takes a claim: its manager hears of `there` (all sandboxes of the worker), as far as they are its own, and of later ones. A
    /// stream of the same manager ends. Answers the stream's number.
    ///
    /// Fails with the epoch of the manager's newer claim: this one was overtaken on its way.
    pub(super) fn claim(
        &mut self,
        claim: &Arc<Claim>,
        there: &[SandboxState],
        queue: mpsc::Sender<Event>,
    ) -> Result<u64, u64> {
        if let Some(newer) = self.claims.get(&claim.manager).filter(|known| known.epoch > claim.epoch) {
            return Err(newer.epoch);
        }
        for state in there {
            self.sandboxes.entry(state.sandbox).or_insert_with(|| Known::new(&state.version, 0, false));
        }
        let mut own = HashSet::new();
        for (id, known) in &mut self.sandboxes {
            if claim.covers(&known.function) {
                known.fence = known.fence.max(claim.epoch);
                own.insert(*id);
            }
        }
        self.remember(claim);
        self.streams.retain(|stream| stream.claim.manager != claim.manager);
        self.streams_so_far += 1;
        let number = self.streams_so_far;
        self.streams.push(Stream { number, claim: Arc::clone(claim), own, queue });
        Ok(number)
    }

    fn remember(&mut self, claim: &Arc<Claim>) {
        self.claims.insert(Arc::clone(&claim.manager), Arc::clone(claim));
        if self.claims.len() > CLAIMS
            && let Some(oldest) = self.claims.values().min_by_key(|claim| claim.epoch).map(|c| Arc::clone(&c.manager))
        {
            self.claims.remove(&oldest);
        }
    }

    /// Whether the stream covers the sandbox.
    pub(super) fn is_covered(&self, number: u64, sandbox: SandboxId) -> bool {
        self.streams.iter().any(|stream| stream.number == number && stream.own.contains(&sandbox))
    }

    /// Of those that were `there`, only `left` are: the others ended while their claim was taken.
    pub(super) fn reconcile(&mut self, there: &[SandboxState], left: &[SandboxState]) {
        let left: HashSet<SandboxId> = left.iter().map(|state| state.sandbox).collect();
        for state in there.iter().filter(|state| !left.contains(&state.sandbox)) {
            if self.sandboxes.get(&state.sandbox).is_some_and(|known| !known.starting) {
                self.forget(state.sandbox);
            }
        }
    }

    /// A sandbox is to be made. `false`: a newer claim has given the function to somebody.
    pub(super) fn init(&mut self, sandbox: SandboxId, version: &Arc<FunctionVersion>, epoch: u64) -> bool {
        let new = Known::new(version, epoch, true);
        let covering = self.claims.values().filter(|claim| claim.covers(&new.function));
        if covering.map(|claim| claim.epoch).max().is_some_and(|claimed| epoch < claimed) {
            return false;
        }
        for stream in self.streams.iter_mut().filter(|stream| stream.claim.covers(&new.function)) {
            stream.own.insert(sandbox);
        }
        self.sandboxes.insert(sandbox, new);
        true
    }

    /// The Init has made the sandbox. Managers that cover it hear of it, but for `asker`, who has the answer.
    pub(super) fn made(&mut self, made: &SandboxState, asker: Option<&str>) {
        let Some(known) = self.sandboxes.get_mut(&made.sandbox) else { return };
        known.starting = false;
        self.tell(made.sandbox, asker, || Event::Adopted(made.clone()));
    }

    /// The Init has failed: nothing is there.
    pub(super) fn not_made(&mut self, sandbox: SandboxId, asker: Option<&str>) {
        self.tell(sandbox, asker, || Event::Dead(sandbox, RetireReason::Failure));
        self.forget(sandbox);
    }

    /// Whether a call with a lease or a view of this epoch may reach the sandbox.
    pub(super) fn admits(&self, sandbox: SandboxId, epoch: u64) -> bool {
        self.sandboxes.get(&sandbox).is_none_or(|known| epoch >= known.fence)
    }

    pub(super) fn happened(&mut self, event: &Event) {
        let (Event::Answered(sandbox) | Event::Idle(sandbox) | Event::Dead(sandbox, _)) = *event else { return };
        self.tell(sandbox, None, || event.clone());
        if matches!(event, Event::Dead(..)) {
            self.forget(sandbox);
        }
    }

    fn tell(&mut self, sandbox: SandboxId, not: Option<&str>, event: impl Fn() -> Event) {
        self.streams.retain(|stream| {
            if !stream.own.contains(&sandbox) || not == Some(&*stream.claim.manager) {
                return true;
            }
            // Full, or nobody reads any more: the stream ends, and its manager claims anew.
            stream.queue.try_send(event()).is_ok()
        });
    }

    /// Every sandbox that there is, or that is to be made; and whether its Init is under way.
    pub(super) fn all(&self) -> impl Iterator<Item = (SandboxId, &Arc<FunctionVersion>, bool)> {
        self.sandboxes.iter().map(|(id, known)| (*id, &known.version, known.starting))
    }

    /// Nothing is left of the sandbox.
    pub(super) fn forget(&mut self, sandbox: SandboxId) {
        self.sandboxes.remove(&sandbox);
        self.streams.iter_mut().for_each(|stream| {
            stream.own.remove(&sandbox);
        });
    }

    /// The stream's reader is gone.
    pub(super) fn end(&mut self, number: u64) {
        self.streams.retain(|stream| stream.number != number);
    }

    pub(super) fn end_all(&mut self) {
        self.streams.clear();
    }

    /// How many fences there are, for tests.
    #[cfg(test)]
    pub(super) fn fences(&self) -> usize {
        self.sandboxes.len()
    }
}

#[cfg(test)]
mod tests;
