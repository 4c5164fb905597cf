//! The authority, the join server and its clients, over real sockets; and what an attacker would try.

mod authority;
mod hostile;
mod impostors;
mod joining;
mod support;
mod third_party;
