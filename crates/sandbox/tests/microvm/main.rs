//! MicroVM sandboxes through the public API: real guests, under QEMU and Firecracker.
//!
//! This program plays four parts: the tests, the program that runs in the VMs, and a server with either engine that is killed.

mod confinement;
mod firecracker;
#[path = "../common/guest.rs"]
mod guest;
#[cfg(feature = "in-place")]
mod in_place;
mod inside;
mod kept;
mod lifecycle;
mod network;
mod pool;
mod support;

use libtest_mimic::{Arguments, Trial};

fn main() {
    sandbox::process::maybe_run_helper();
    let arguments: Vec<String> = std::env::args().collect();
    // Started in the place of a vsock device.
    if arguments.get(1).is_some_and(|argument| argument == confinement::DEVICE) {
        return confinement::run();
    }
    if let [_, part, rest @ ..] = arguments.as_slice() {
        match part.as_str() {
            inside::PART => return inside::run(rest),
            lifecycle::SERVER => return lifecycle::run_server(&rest[0]),
            firecracker::SERVER => return firecracker::run_server(&rest[0]),
            _ => {}
        }
    }
    #[cfg_attr(not(feature = "in-place"), expect(unused_mut, reason = "there are no others"))]
    let mut trials: Vec<Trial> =
        [lifecycle::tests(), pool::tests(), network::tests(), confinement::tests(), firecracker::tests()]
            .into_iter()
            .flatten()
            .collect();
    #[cfg(feature = "in-place")]
    trials.extend(in_place::tests());
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}
