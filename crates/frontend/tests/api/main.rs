//! The Frontend through real sockets, with stand-ins for the parts behind it.

mod access;
mod client;
mod events;
mod fakes;
mod hostile;
mod invoke;
mod logs;
mod server;
mod sigv4;
