//! The control plane: functions, versions, aliases, resource policies, tags and concurrency settings.
//!
//! ```text
//!  Frontend ──operation──► ControlPlane ──rule (pure)──► commit ──► store
//!                               ▲                                     │ change feed
//!  Frontend ──resolve───────► Catalog (memory) ◄──────────────────────┘
//! ```
//!
//! A function is one aggregate: its `$LATEST`, aliases, policies and tags are one record, and each published version is
//! one more. A rule takes the aggregate, checks, and changes it; the shell commits the result under the precondition
//! that the stored one is still the one that the rule saw. The copy in memory follows the store's change feed and
//! nothing else, so it is the same whoever made the change, and [`ControlPlane::resolve`] reads it without locks or IO.
//!
//! The customers' environment variables are encrypted in the records, and nowhere else: `sealed.rs`.
//!
//! States of `$LATEST`, with the background step that makes its runtime, or its container image, ready:
//!
//! ```text
//!  create ─► Pending ──ready──► Active ──update──► Active, InProgress ──ready──► Active, Successful
//!               └─failed─► Failed ──update──► Pending      └─failed─► Active, Failed (the old code serves on)
//! ```
//!
//! Of a published version with SnapStart:
//!
//! ```text
//!  publish ─► Pending ──snapshot taken, or the host takes none──► Active
//!                └─its Init failed─► Failed
//! ```
#![forbid(unsafe_code)]

mod catalog;
mod function;
mod name;
mod page;
mod record;
mod rules;
mod sealed;
mod service;
mod view;

pub use name::Caller;
pub use record::{Failure, FailureCode};
pub use sealed::encrypted_with;
pub use service::{
    Behind, Config, ControlPlane, Error, EventSettings, EventSourceCheck, ImageCatalog, ImageFault, ImageFaultKind,
    Metadata, Peers, Resolved, RuntimeCatalog, SnapshotCatalog, SnapshotFault,
};
