//! Contract.
fn main() {}
