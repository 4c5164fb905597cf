//! The service with the SQLite engine and fakes behind its ports. Hours pass by a clock that is moved by hand.

mod delivery;
mod fairness;
mod outcomes;
mod reliability;
mod support;
