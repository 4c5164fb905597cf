//! Sandboxes in which a process already stands by, by kind. See [`guest::standby`].
//!
//! Nothing is kept for what nobody asked for. A kind that somebody did ask for has some from the next lull on, while it
//! is among the last kinds asked for, and not for longer than [`EXPIRY`].

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use guest::protocol::{During, Failure, Message, Spawn};

use super::blank::Blank;
use super::config::STANDBY_KINDS;
use super::messages::Spec;

/// A kind that nobody asked for in this time has none any more.
const EXPIRY: Duration = Duration::from_secs(300);

/// What must be the same for a sandbox to serve.
#[derive(Debug, Clone, PartialEq)]
pub struct Kind {
    pub root: PathBuf,
    /// Those that the standby finds.
    pub mounts: Vec<(PathBuf, String)>,
    pub ephemeral_mb: u32,
    pub hosts: Vec<(IpAddr, String)>,
    pub listen: Vec<u16>,
    pub spawn: Spawn,
}

impl Kind {
    /// Of a sandbox that could have a standby.
    pub fn of(spec: &Spec) -> Option<Self> {
        let (spawn, mounts) = spec.standby.clone()?;
        Some(Self {
            root: spec.root.clone(),
            mounts: spec.mounts.get(..mounts)?.to_vec(),
            ephemeral_mb: spec.ephemeral_mb,
            hosts: spec.hosts.clone(),
            listen: spec.listen.clone(),
            spawn,
        })
    }
}

/// One of them. `S` is a [`Blank`], and less in tests.
#[derive(Debug)]
struct Standby<S> {
    sandbox: S,
    kind: Kind,
    /// Its process has been started.
    ready: bool,
}

/// All of them.
#[derive(Debug)]
pub struct Standbys<S = Blank> {
    /// How many for each kind.
    each: usize,
    /// When each was last asked for; the last one first.
    kinds: VecDeque<(Kind, Instant)>,
    all: Vec<Standby<S>>,
}

impl<S> Standbys<S> {
    /// None yet; `each` for every kind later.
    pub fn new(each: usize) -> Self {
        Self { each, kinds: VecDeque::new(), all: Vec::new() }
    }

    /// Somebody asks for one: here it is, if there is one.
    pub fn take(&mut self, kind: &Kind, now: Instant) -> Option<S> {
        self.forget(kind);
        self.kinds.push_front((kind.clone(), now));
        self.kinds.truncate(STANDBY_KINDS);
        let index = self.all.iter().position(|standby| standby.ready && standby.kind == *kind)?;
        Some(self.all.remove(index).sandbox)
    }

    /// A kind of which there are too few.
    pub fn lacking(&self) -> Option<Kind> {
        let count = |kind: &Kind| self.all.iter().filter(|standby| standby.kind == *kind).count();
        self.kinds.iter().map(|(kind, _)| kind).find(|kind| count(kind) < self.each).cloned()
    }

    /// One has been told to start its process.
    pub fn add(&mut self, sandbox: S, kind: Kind) {
        self.all.push(Standby { sandbox, kind, ready: false });
    }

    /// No more of this kind until somebody asks again.
    pub fn forget(&mut self, kind: &Kind) {
        self.kinds.retain(|(other, _)| other != kind);
    }

    /// Those that are not wanted any more.
    pub fn expire(&mut self, now: Instant) -> Vec<S> {
        self.kinds.retain(|(_, asked)| now.saturating_duration_since(*asked) < EXPIRY);
        let kinds = &self.kinds;
        let unwanted = self.all.extract_if(.., |standby| !kinds.iter().any(|(kind, _)| *kind == standby.kind));
        unwanted.map(|standby| standby.sandbox).collect()
    }

    /// When the next of them is not wanted any more.
    pub fn expiry(&self) -> Option<Instant> {
        self.kinds.back().map(|(_, asked)| *asked + EXPIRY)
    }

    /// Nobody needs them from now on.
    pub fn drain(&mut self) -> Vec<S> {
        self.kinds.clear();
        self.all.drain(..).map(|standby| standby.sandbox).collect()
    }
}

impl Standbys {
    /// Readable when [`Standbys::hear`] does not wait.
    pub fn starting(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.all.iter().filter(|standby| !standby.ready).map(|standby| standby.sandbox.control.as_fd())
    }

    /// Hears what has become of the one that is `index`th in [`Standbys::starting`]. After a failure it is returned,
    /// and there are no more of its kind until somebody asks again.
    pub fn hear(&mut self, index: usize) -> Result<(), (Blank, Failure)> {
        let Some((at, standby)) = self.all.iter_mut().enumerate().filter(|(_, standby)| !standby.ready).nth(index)
        else {
            return Ok(());
        };
        let outcome = match standby.sandbox.control.receive().during("listen to PID 1") {
            Ok(Some((Message::Reply(reply), _))) => reply.map(drop),
            Ok(_) => Err(Failure::host("start a standby: PID 1 died", &io::ErrorKind::UnexpectedEof.into())),
            Err(failure) => Err(failure),
        };
        standby.ready = outcome.is_ok();
        outcome.map_err(|failure| {
            let Standby { sandbox, kind, .. } = self.all.remove(at);
            self.forget(&kind);
            (sandbox, failure)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str) -> Kind {
        Kind {
            root: name.into(),
            mounts: Vec::new(),
            ephemeral_mb: 512,
            hosts: Vec::new(),
            listen: Vec::new(),
            spawn: Spawn { argv: Vec::new(), env: Vec::new(), cwd: "/".into() },
        }
    }

    /// Makes as many as are lacking; they are named after their kind.
    fn fill(standbys: &mut Standbys<PathBuf>) -> usize {
        let before = standbys.all.len();
        while let Some(kind) = standbys.lacking() {
            standbys.add(kind.root.clone(), kind);
        }
        standbys.all.iter_mut().for_each(|standby| standby.ready = true);
        standbys.all.len() - before
    }

    #[test]
    fn there_are_some_of_what_was_asked_for() {
        let (mut standbys, now) = (Standbys::new(2), Instant::now());
        assert_eq!(fill(&mut standbys), 0, "nobody asked");
        assert_eq!(standbys.take(&kind("a"), now), None);
        assert_eq!(fill(&mut standbys), 2);
        assert_eq!(standbys.take(&kind("b"), now), None, "another kind");
        assert_eq!(standbys.take(&kind("a"), now), Some("a".into()));
        assert_eq!(fill(&mut standbys), 3);
    }

    #[test]
    fn they_are_few_and_not_kept_for_ever() {
        let (mut standbys, start) = (Standbys::new(2), Instant::now());
        for name in ["a", "b", "c", "d", "e"] {
            standbys.take(&kind(name), start);
            fill(&mut standbys);
            standbys.expire(start);
            assert!(standbys.all.len() <= 2 * STANDBY_KINDS);
        }
        let later = start + EXPIRY / 2;
        assert_eq!(standbys.take(&kind("d"), later), Some("d".into()));
        assert_eq!(standbys.expiry(), Some(start + EXPIRY));
        assert_eq!(standbys.expire(start + EXPIRY).len(), 4);
        assert_eq!(standbys.expire(later + EXPIRY).len(), 1);
        assert_eq!((standbys.lacking(), standbys.expiry()), (None, None));
    }

    #[test]
    fn one_that_has_not_started_serves_nobody() {
        let (mut standbys, now) = (Standbys::<PathBuf>::new(1), Instant::now());
        standbys.take(&kind("a"), now);
        standbys.add("a".into(), kind("a"));
        assert_eq!((standbys.take(&kind("a"), now), standbys.lacking()), (None, None));
    }
}
