//! Who is in the fleet.
//!
//! ```text
//!   a process                                                  the registry (PostgreSQL; memory for one process)
//!  ┌────────────────────────────────────────────┐             ┌──────────────────────────────────────────┐
//!  │ Membership (handle) ◄─publish─ service.rs ──┼─join, beat──► members: id, roles, address, state, lease │
//!  │   view()  changes()              │   ▲      │  set_state, │ one epoch, which grows with every change │
//!  │   activate() drain() leave()     ▼   │      │  leave      │                                          │
//!  │                               keeper.rs    ◄┼──view───────┤ a sweep, by whoever beats first, finds   │
//!  │                        (pure: what is due) ◄┼──heard──────┤ the expired and has the epoch grow       │
//!  └────────────────────────────────────────────┘             └──────────────────────────────────────────┘
//! ```
//!
//! - A [`Member`] holds a lease and beats every quarter of its time to live. All time is the registry's: no call carries a time
//!   of day, so that it does not matter how wrong the hosts' clocks are.
//! - A [`View`] is all members at one epoch. Members change and the epoch grows in one transaction, so that one epoch is one
//!   view, in every process; two processes compare views by two numbers.
//! - **Static stability**: nothing but the registry ends a lease. While it cannot be reached, the last view stays in force.
//! - **After an outage** nobody is dead who did not have a full time to live to beat in. The sweep sees to that: it is done a few
//!   times per time to live by whichever member beats first, and leaves behind when it was. A sweep that finds the one before
//!   longer ago than three eighths of a time to live knows that nobody could beat, takes nobody for dead, and begins all leases anew
//!   (`ledger.rs` has the rule and why it is enough).
//! - Who was found dead and lives learns so at its next beat, and joins again, with a higher epoch.
#![forbid(unsafe_code)]

mod keeper;
mod ledger;
mod member;
mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
mod registry;
mod service;
mod view;

pub use keeper::{Action, Call, Event, Keeper, Standing};
pub use ledger::Ledger;
pub use member::{Member, MemberId, MemberState, Role, UnknownRole};
pub use memory::MemoryRegistry;
pub use registry::{Hold, Lease, Registry, RegistryError};
pub use service::{Config, Membership};
pub use view::View;
