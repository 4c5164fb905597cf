//! The program that runs inside.

pub const PART: &str = "attack";

pub fn run(_arguments: &[String]) {}
