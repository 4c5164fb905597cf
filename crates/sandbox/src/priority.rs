//! The platform's threads before the functions' processes.

use std::io;

/// Steps of the kernel's scale (`nice`, -20 to 19) by which the platform comes before functions. Each step is a quarter
/// more of a contended core: enough that a host full of busy functions does not keep the platform from starting the next
/// one, and not so much that the functions run dry while it has the core (measured with the benchmark of throughput: 4 to
/// 7 steps are worth 4 %, 15 cost 5 %).
const STEPS: i32 = 5;

/// Lets the calling thread come before functions, which have the usual priority; not what it starts: processes and
/// threads begin with the usual one. A thread that the operator gave a priority (`nice emberbox …`) keeps it.
///
/// # Errors
/// The kernel does not allow it: needs root, `CAP_SYS_NICE` or `RLIMIT_NICE`. Nothing but some throughput depends on it.
pub fn before_functions() -> io::Result<()> {
    let size = size_of::<libc::sched_attr>();
    // SAFETY: all of its fields are integers.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = u32::try_from(size).expect("48 bytes");
    // SAFETY: it writes at most `size` bytes to the struct of that size. 0: the calling thread, no flags.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) })?;
    if attributes.sched_policy != libc::SCHED_OTHER.cast_unsigned() || attributes.sched_nice != 0 {
        return Ok(());
    }
    attributes.size = size;
    attributes.sched_nice = -STEPS;
    attributes.sched_flags = u64::from(libc::SCHED_FLAG_RESET_ON_FORK.cast_unsigned());
    // SAFETY: it only reads the struct, which says how large it is. 0: the calling thread, no flags.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn nice_of_a_child() -> i32 {
        let output = Command::new("nice").output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }

    fn own() -> i32 {
        rustix::process::getpriority_process(None).unwrap()
    }

    #[test]
    fn a_thread_comes_first_and_its_children_do_not() {
        std::thread::spawn(|| match before_functions() {
            Ok(()) => {
                assert_eq!(own(), -STEPS);
                assert_eq!(nice_of_a_child(), 0);
                assert_eq!(std::thread::spawn(own).join().unwrap(), 0);
                // Again: it has one now.
                before_functions().unwrap();
                assert_eq!(own(), -STEPS);
            }
            Err(error) => {
                let skipped =
                    format!("SKIPPED a_thread_comes_first_and_its_children_do_not: needs CAP_SYS_NICE: {error}");
                assert!(std::env::var_os("EMBERBOX_REQUIRE_ALL").is_none_or(|value| value != "1"), "{skipped}");
                println!("{skipped}");
            }
        })
        .join()
        .unwrap();
        assert_eq!(own(), 0, "other threads are as they were");
    }

    #[test]
    fn the_operators_choice_stays() {
        std::thread::spawn(|| {
            rustix::process::nice(3).unwrap();
            before_functions().unwrap();
            assert_eq!(own(), 3);
        })
        .join()
        .unwrap();
    }
}
