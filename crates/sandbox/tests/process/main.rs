//! Process sandboxes through the public API: their life, and attacks from inside.
//!
//! This program plays three parts: the tests, the sandbox helper, and the attacker, which runs in the sandboxes.

mod attacker;
mod attacks;
#[path = "../common/guest.rs"]
mod guest;
mod lifecycle;
mod measure;
mod standby;
mod support;
mod unified;

use libtest_mimic::{Arguments, Trial};

fn main() {
    sandbox::process::maybe_run_helper();
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, part, rest @ ..] = arguments.as_slice() {
        match part.as_str() {
            attacker::PART => return attacker::run(rest),
            lifecycle::ENGINE => return lifecycle::run_engine(),
            lifecycle::ROOTLESS => return lifecycle::run_rootless(),
            _ => {}
        }
    }
    let trials: Vec<Trial> =
        [lifecycle::tests(), attacks::tests(), standby::tests(), unified::tests(), measure::tests()]
            .into_iter()
            .flatten()
            .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}
