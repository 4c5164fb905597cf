//! What this crate says and asks, against the real, unmodified `firecracker` and `jailer`.
//!
//! Most guests here are a few instructions that write letters to the serial port (`guest.rs`): they run where KVM only
//! emulates, and show that processor and memory of a VM outlive a snapshot. `linux.rs` boots the guest kernel as well. The
//! programs are in the directory `EMBERBOX_TEST_FIRECRACKER`, the kernel is the file `EMBERBOX_TEST_KERNEL`.
#![forbid(unsafe_code)]

mod guest;
mod jails;
mod lifecycle;
mod linux;
mod refusals;
mod settings;
mod snapshots;
mod support;

fn main() {
    if let Some(directory) = std::env::var_os(jails::SERVER) {
        return jails::serve(directory.into());
    }
    let arguments = libtest_mimic::Arguments::from_args();
    let trials = [
        settings::trials(),
        refusals::trials(),
        lifecycle::trials(),
        snapshots::trials(),
        jails::trials(),
        linux::trials(),
    ];
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit()
}
