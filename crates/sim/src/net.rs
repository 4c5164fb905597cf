//! The network: reliable streams of bytes, as TCP makes them, that are late, are held up by partitions, and end with their hosts.
//!
//! ```text
//!  dial ──► Stream ──write──► pipe: segments, each with the time of its arrival ──read──► Stream of the other end
//!                                     │ while the link is cut they wait; when it is mended they come late
//!                                     └ a process that is killed resets; a host without power says nothing
//! ```
//!
//! Besides, [`Net::call`] carries single calls to what is simulated altogether (the database).

mod call;
mod pipe;
mod stream;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use crate::clock;
use crate::entropy::Rng;
use crate::log::Log;
use pipe::{End, Pipe};
use stream::Stream;

/// After which a connection that was not answered is asked for again, as TCP does.
const SYN_AGAIN: Duration = Duration::from_secs(1);
/// How much later at most a segment comes that had to be sent again when a link was mended.
const RETRANSMIT: u64 = 1_000;

/// A host's place in the simulation.
pub type HostId = usize;

/// All of the network. Cheap to clone.
#[derive(Clone)]
pub struct Net(Arc<Mutex<State>>);

pub(crate) struct State {
    rng: Rng,
    log: Log,
    hosts: Vec<Host>,
    /// Directions in which nothing arrives.
    cut: Vec<(HostId, HostId)>,
    /// Directions that are slow, and by which factor.
    slow: Vec<(HostId, HostId, u32)>,
    connections: u64,
    /// Both directions of each, by number and whether it leads to the one who was dialed.
    pipes: BTreeMap<(u64, bool), Pipe>,
    /// What comes to each host.
    mail: BTreeMap<(HostId, Duration, u64), Letter>,
    letters: u64,
    /// No message is faster: hosts run for so long before the others hear of what they did.
    least: Duration,
}

type Letter = Box<dyn FnOnce() + Send>;

struct Host {
    name: String,
    /// Which life of it this is.
    life: u64,
    /// There is a process.
    runs: bool,
    /// There is a machine, which refuses connections if there is no process.
    powered: bool,
    listener: Option<mpsc::UnboundedSender<Arrival>>,
}

/// A connection on its way to who listens.
struct Arrival {
    at: Duration,
    stream: Stream,
    from: HostId,
}

impl State {
    fn is_cut(&self, from: HostId, to: HostId) -> bool {
        self.cut.contains(&(from, to))
    }

    /// How long something takes that leaves now.
    fn latency(&mut self, from: HostId, to: HostId) -> Duration {
        let mut millis = match self.rng.below(100) {
            0..90 => self.rng.between(8, 20),
            90..99 => self.rng.between(20, 80),
            _ => self.rng.between(60, 400),
        };
        for (a, b, factor) in &self.slow {
            if (*a, *b) == (from, to) {
                millis *= u64::from(*factor);
            }
        }
        Duration::from_millis(millis).max(self.least)
    }

    fn lives(&self, end: End) -> bool {
        self.hosts[end.host].runs && self.hosts[end.host].life == end.life
    }
}

impl Net {
    pub(crate) fn new(rng: Rng, log: Log, least: Duration) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng,
            log,
            hosts: Vec::new(),
            cut: Vec::new(),
            slow: Vec::new(),
            connections: 0,
            pipes: BTreeMap::new(),
            mail: BTreeMap::new(),
            letters: 0,
            least,
        })))
    }

    pub(crate) fn set_least(&self, least: Duration) {
        self.0.lock().least = least;
    }

    pub(crate) fn add_host(&self, name: &str) -> HostId {
        let mut state = self.0.lock();
        let host = Host { name: name.to_owned(), life: 0, runs: false, powered: true, listener: None };
        state.hosts.push(host);
        state.hosts.len() - 1
    }

    /// The process starts; what its earlier lives had connected is reset.
    pub(crate) fn started(&self, host: HostId) {
        let mut state = self.0.lock();
        state.reset_all_of(host);
        let host = &mut state.hosts[host];
        host.life += 1;
        host.runs = true;
        host.powered = true;
    }

    /// The process is gone. `silent`: with its machine, so that nobody is told.
    pub(crate) fn ended(&self, host: HostId, silent: bool) {
        let mut state = self.0.lock();
        state.hosts[host].runs = false;
        state.hosts[host].powered = !silent;
        state.hosts[host].listener = None;
        if !silent {
            state.reset_all_of(host);
        }
        let gone: Vec<_> =
            state.mail.range((host, Duration::ZERO, 0)..(host + 1, Duration::ZERO, 0)).map(|(k, _)| *k).collect();
        let letters: Vec<_> = gone.iter().map(|key| state.mail.remove(key)).collect();
        drop(state);
        // What a letter holds may come back here.
        drop(letters);
    }

    /// Nothing arrives from `a` at `b` any more.
    pub(crate) fn cut(&self, from: HostId, to: HostId) {
        let mut state = self.0.lock();
        if from != to && !state.is_cut(from, to) {
            state.cut.push((from, to));
        }
    }

    /// All links are as they were; what was held up arrives.
    pub(crate) fn mend(&self) {
        let mut state = self.0.lock();
        state.cut.clear();
        state.slow.clear();
        let State { pipes, rng, .. } = &mut *state;
        for pipe in pipes.values_mut() {
            pipe.late(clock::now(), || Duration::from_millis(rng.between(1, RETRANSMIT)));
        }
    }

    /// What goes from `from` to `to` takes so many times as long.
    pub(crate) fn slow(&self, from: HostId, to: HostId, factor: u32) {
        self.0.lock().slow.push((from, to, factor));
    }

    /// What comes to a host before `end`, in the order of its arrival.
    pub(crate) fn mail(&self, host: HostId, end: Duration) -> Vec<(Duration, Letter)> {
        let mut state = self.0.lock();
        let mut due = Vec::new();
        while let Some((key, _)) = state.mail.range((host, Duration::ZERO, 0)..(host, end, 0)).next() {
            let key = *key;
            due.extend(state.mail.remove(&key).map(|letter| (key.1, letter)));
        }
        due
    }

    /// Takes the connections to a host; `host` runs.
    pub fn listen(&self, host: HostId) -> Listener {
        let (sender, arrivals) = mpsc::unbounded_channel();
        self.0.lock().hosts[host].listener = Some(sender);
        Listener { arrivals, next: None }
    }

    /// Makes connections from a host.
    pub fn dialer(&self, host: HostId) -> Dialer {
        Dialer { net: self.clone(), host }
    }
}

/// See [`Net::dialer`].
pub struct Dialer {
    net: Net,
    host: HostId,
}

/// What became of an attempt to connect.
enum Knock {
    Silence,
    Refused(Duration),
    Open(Stream, Duration),
}

impl Dialer {
    /// The request for a connection has arrived.
    fn knock(&self, to: HostId) -> Knock {
        let net = &self.net;
        let mut guard = net.0.lock();
        let state = &mut *guard;
        let from = self.host;
        if state.is_cut(from, to) || state.is_cut(to, from) || !state.hosts[to].powered {
            return Knock::Silence;
        }
        let back = clock::now() + state.latency(to, from);
        let Some(listener) = state.hosts[to].listener.clone() else { return Knock::Refused(back) };
        let number = state.connections;
        state.connections += 1;
        let (near, far) =
            (End { host: from, life: state.hosts[from].life }, End { host: to, life: state.hosts[to].life });
        state.pipes.insert((number, true), Pipe::new(near, far));
        state.pipes.insert((number, false), Pipe::new(far, near));
        state.log.line(format_args!("net {} connects to {} ({number})", state.hosts[from].name, state.hosts[to].name));
        let stream = |dialed| Stream::new(net.clone(), number, dialed);
        let arrival = Arrival { at: back, stream: stream(false), from };
        let sent = listener.send(arrival);
        drop(guard);
        match sent {
            Ok(()) => Knock::Open(stream(true), back),
            Err(_) => Knock::Refused(back),
        }
    }
}

#[async_trait]
impl rpc::Dial for Dialer {
    async fn dial(&self, address: &str) -> io::Result<Box<dyn rpc::Io>> {
        let name = address.split(':').next().unwrap_or_default();
        let to = self.net.0.lock().hosts.iter().position(|host| host.name == name);
        let to = to.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no host {name}")))?;
        loop {
            let there = clock::now() + self.net.0.lock().latency(self.host, to);
            sleep_until(clock::instant(there)).await;
            match self.knock(to) {
                Knock::Silence => tokio::time::sleep(SYN_AGAIN).await,
                Knock::Refused(back) => {
                    sleep_until(clock::instant(back)).await;
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                Knock::Open(stream, back) => {
                    sleep_until(clock::instant(back)).await;
                    return Ok(Box::new(stream));
                }
            }
        }
    }
}

/// See [`Net::listen`].
pub struct Listener {
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    next: Option<Arrival>,
}

#[async_trait]
impl rpc::Listen for Listener {
    async fn accept(&mut self) -> io::Result<(Box<dyn rpc::Io>, SocketAddr)> {
        if self.next.is_none() {
            self.next = self.arrivals.recv().await;
        }
        // Its sender goes with the host.
        let Some(arrival) = &self.next else { std::future::pending().await };
        sleep_until(clock::instant(arrival.at)).await;
        let Arrival { stream, from, .. } = self.next.take().expect("it was there");
        let from = SocketAddr::from(([10, 0, 0, u8::try_from(from).unwrap_or(u8::MAX)], 1));
        Ok((Box::new(stream), from))
    }
}
