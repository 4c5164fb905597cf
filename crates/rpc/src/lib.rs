//! The calls of `domain::ports` between processes: gRPC over HTTP/2, with mutual TLS.
//!
//! ```text
//!  Frontend ── RemoteManager ──Assign, Release, Retire──► ManagerServer ── dyn WorkerManager
//!     │                                                       │
//!     │   lease: worker, address, epoch                       │ RemoteWorker
//!     │                                            Init, Shutdown, Watch(claim)
//!     │                                                       ▼
//!     └──── RemoteWorker ──────────Invoke(payload)───────► WorkerServer ── dyn Worker
//!                                                             │   ▲
//!                          a manager's WorkerEvents ◄──Told───┘   └── SlotEvents
//!
//!  a manager ── RemotePlacement ──Place──► PlacementServer ── dyn Placement ◄── WorkerObserver ◄──Observed── WorkerServer
//! ```
//!
//! - [`Server`] listens and says who may call what ([`Role`]); [`WorkerServer`] and [`ManagerServer`] are what it serves.
//! - [`Channels`] has one connection per peer; [`RemoteWorker`] and [`RemoteManager`] are the traits over one.
//! - `hub` is the pure part: claims, fences, and which manager hears of which sandbox.
//!
//! **Messages.** A payload travels in one message, not as a stream of chunks: it has at most 6 MB, both ends hold it whole in any case (the Frontend
//! to check its JSON, the worker to hand it to the runtime), and HTTP/2 cuts it into frames that other calls' frames go between. It
//! is copied once into the sender's message and once out of the receiver's frames; what the parts get is a slice of that.
//!
//! **Two versions at once.** See `proto/common.proto`: unknown fields are passed over, absent ones are defaults, and unknown words have a
//! meaning that is safe. [`domain::FunctionVersion`] travels as JSON, which has the same two rules (`convert` has the tests).
//!
//! **Errors.** A request that certainly was not handed to a live peer is [`domain::WorkerError::Unreachable`] with `unsent`: the
//! connection could not be made, was closed before, or the peer said so (`GOAWAY` with a lower stream, `REFUSED_STREAM`; RFC 9113,
//! sections 6.8 and 8.7). Everything else is not `unsent`. A dead peer is found by pings within [`DEAD_AFTER`].
#![forbid(unsafe_code)]

mod access;
mod channel;
mod connection;
mod convert;
mod failure;
mod frontend;
mod identity;
mod logs;
mod manager;
mod net;
mod placement;
mod quota;
mod server;
mod status;
mod tls;
mod worker;

/// The messages and services, as generated from `proto/`.
#[allow(missing_docs, clippy::all, clippy::large_futures)]
#[path = "generated/emberbox.v1.rs"]
pub mod pb;

use std::time::Duration;

pub use channel::{Channel, Channels, origin};
pub use failure::Failure;
pub use frontend::{FrontendServer, MetadataCopy, RemoteFrontend};
pub use identity::{Member, Role};
pub use logs::{LogsFault, LogsServer, RemoteLogs, WorkerLogs};
pub use manager::client::RemoteManager;
pub use manager::server::ManagerServer;
pub use net::{Dial, Io, Listen};
pub use placement::{PlacementServer, RemotePlacement};
pub use quota::{QuotaServer, RemoteHome};
pub use server::{ServeError, Server, Services};
pub use status::{Cordon, RemoteStatus, Report, StatusServer};
pub use tls::{Credentials, Tls, TlsError};
pub use worker::Claim;
pub use worker::client::RemoteWorker;
pub use worker::server::WorkerServer;

/// The largest message, in bytes: Lambda's 6 MB (6,291,556 bytes: the limit and what the envelope of a request may take), and room for
/// what goes with it.
pub const MAX_MESSAGE: usize = 8 << 20;
/// What of [`MAX_MESSAGE`] a payload may take.
pub const MAX_PAYLOAD: usize = MAX_MESSAGE - (1 << 20);
/// A connection that was silent for this long is pinged.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(2);
/// How long a ping may take. Longer than the interval: one connection carries many invocations, and a peer without processor time
/// for a moment should not cost them.
pub(crate) const PING_LIMIT: Duration = Duration::from_secs(4);
/// After this time without a sign of the peer, its calls have failed.
pub const DEAD_AFTER: Duration = PING_EVERY.saturating_add(PING_LIMIT);
/// HTTP/2 flow control: what may be on its way in one call, and in all of a connection, in bytes.
pub(crate) const STREAM_WINDOW: u32 = 2 << 20;
pub(crate) const CONNECTION_WINDOW: u32 = 16 << 20;
/// HTTP/2's frames, in bytes.
pub(crate) const FRAME: u32 = 64 << 10;
