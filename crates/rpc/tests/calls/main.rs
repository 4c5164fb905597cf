//! Whole calls over real sockets on loopback, to a worker and a manager that a test can hold up.

mod support;

mod assign;
mod claims;
mod cost;
mod faults;
mod invoke;
mod life;
mod placing;
mod tls;
