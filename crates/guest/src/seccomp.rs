//! Which system calls a function's process may make.
//!
//! An allow list in the style of Docker's default profile, without what a function has no business with: tracing and the
//! memory of other processes, mounts and namespaces, kernel keyrings, BPF, performance counters, user fault handling,
//! io_uring, modules, clocks. All else fails with EPERM, as a privilege would.

use std::collections::BTreeMap;

use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// System calls on which nothing hangs but the caller.
const ALLOWED: &[&[i64]] = &[
    // Files: names, contents, attributes. What they may touch is the matter of mounts, owners and Landlock.
    &[
        libc::SYS_chdir,
        libc::SYS_close,
        libc::SYS_close_range,
        libc::SYS_copy_file_range,
        libc::SYS_dup,
        libc::SYS_dup3,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_fadvise64,
        libc::SYS_fallocate,
        libc::SYS_fchdir,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_fchmodat2,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_fcntl,
        libc::SYS_fdatasync,
        libc::SYS_fgetxattr,
        libc::SYS_flistxattr,
        libc::SYS_flock,
        libc::SYS_fremovexattr,
        libc::SYS_fsetxattr,
        libc::SYS_fstat,
        libc::SYS_fstatfs,
        libc::SYS_fsync,
        libc::SYS_ftruncate,
        libc::SYS_getcwd,
        libc::SYS_getdents64,
        libc::SYS_getxattr,
        libc::SYS_lgetxattr,
        libc::SYS_linkat,
        libc::SYS_listxattr,
        libc::SYS_llistxattr,
        libc::SYS_lremovexattr,
        libc::SYS_lseek,
        libc::SYS_lsetxattr,
        libc::SYS_mkdirat,
        libc::SYS_newfstatat,
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_pread64,
        libc::SYS_preadv,
        libc::SYS_preadv2,
        libc::SYS_pwrite64,
        libc::SYS_pwritev,
        libc::SYS_pwritev2,
        libc::SYS_read,
        libc::SYS_readahead,
        libc::SYS_readlinkat,
        libc::SYS_readv,
        libc::SYS_removexattr,
        libc::SYS_renameat,
        libc::SYS_renameat2,
        libc::SYS_sendfile,
        libc::SYS_setxattr,
        libc::SYS_splice,
        libc::SYS_statfs,
        libc::SYS_statx,
        libc::SYS_symlinkat,
        libc::SYS_sync,
        libc::SYS_sync_file_range,
        libc::SYS_syncfs,
        libc::SYS_tee,
        libc::SYS_truncate,
        libc::SYS_umask,
        libc::SYS_unlinkat,
        libc::SYS_utimensat,
        libc::SYS_vmsplice,
        libc::SYS_write,
        libc::SYS_writev,
    ],
    // Waiting for things.
    &[
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_eventfd2,
        libc::SYS_inotify_add_watch,
        libc::SYS_inotify_init1,
        libc::SYS_inotify_rm_watch,
        libc::SYS_ppoll,
        libc::SYS_pselect6,
        libc::SYS_signalfd4,
        libc::SYS_timerfd_create,
        libc::SYS_timerfd_gettime,
        libc::SYS_timerfd_settime,
    ],
    // Memory.
    &[
        libc::SYS_brk,
        libc::SYS_get_mempolicy,
        libc::SYS_madvise,
        libc::SYS_mbind,
        libc::SYS_membarrier,
        libc::SYS_memfd_create,
        libc::SYS_mincore,
        libc::SYS_mlock,
        libc::SYS_mlock2,
        libc::SYS_mlockall,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_mseal,
        libc::SYS_msync,
        libc::SYS_munlock,
        libc::SYS_munlockall,
        libc::SYS_munmap,
        libc::SYS_pkey_alloc,
        libc::SYS_pkey_free,
        libc::SYS_pkey_mprotect,
        libc::SYS_remap_file_pages,
        libc::SYS_set_mempolicy,
    ],
    // Processes and threads of the sandbox: others are out of sight in its PID namespace.
    &[
        libc::SYS_capget,
        libc::SYS_capset,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_futex,
        libc::SYS_futex_waitv,
        libc::SYS_get_robust_list,
        libc::SYS_getcpu,
        libc::SYS_getegid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getgroups,
        libc::SYS_getpgid,
        libc::SYS_getpid,
        libc::SYS_getppid,
        libc::SYS_getpriority,
        libc::SYS_getresgid,
        libc::SYS_getresuid,
        libc::SYS_getrlimit,
        libc::SYS_getrusage,
        libc::SYS_getsid,
        libc::SYS_gettid,
        libc::SYS_getuid,
        libc::SYS_ioprio_get,
        libc::SYS_ioprio_set,
        libc::SYS_kill,
        libc::SYS_landlock_add_rule,
        libc::SYS_landlock_create_ruleset,
        libc::SYS_landlock_restrict_self,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_send_signal,
        libc::SYS_prctl,
        libc::SYS_rseq,
        libc::SYS_sched_get_priority_max,
        libc::SYS_sched_get_priority_min,
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_getattr,
        libc::SYS_sched_getparam,
        libc::SYS_sched_getscheduler,
        libc::SYS_sched_rr_get_interval,
        libc::SYS_sched_setaffinity,
        libc::SYS_sched_setattr,
        libc::SYS_sched_setparam,
        libc::SYS_sched_setscheduler,
        libc::SYS_sched_yield,
        libc::SYS_seccomp,
        libc::SYS_set_robust_list,
        libc::SYS_set_tid_address,
        libc::SYS_setfsgid,
        libc::SYS_setfsuid,
        libc::SYS_setgid,
        libc::SYS_setgroups,
        libc::SYS_setpgid,
        libc::SYS_setpriority,
        libc::SYS_setregid,
        libc::SYS_setresgid,
        libc::SYS_setresuid,
        libc::SYS_setreuid,
        libc::SYS_setsid,
        libc::SYS_setuid,
        libc::SYS_tgkill,
        libc::SYS_tkill,
        libc::SYS_wait4,
        libc::SYS_waitid,
    ],
    // Signals.
    &[
        libc::SYS_restart_syscall,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigpending,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigsuspend,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_rt_tgsigqueueinfo,
        libc::SYS_sigaltstack,
    ],
    // Sockets, once made: which kinds, see `conditional`.
    &[
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_bind,
        libc::SYS_connect,
        libc::SYS_getpeername,
        libc::SYS_getsockname,
        libc::SYS_getsockopt,
        libc::SYS_listen,
        libc::SYS_recvfrom,
        libc::SYS_recvmmsg,
        libc::SYS_recvmsg,
        libc::SYS_sendmmsg,
        libc::SYS_sendmsg,
        libc::SYS_sendto,
        libc::SYS_setsockopt,
        libc::SYS_shutdown,
    ],
    // Between processes of the sandbox: it has an IPC namespace.
    &[
        libc::SYS_mq_getsetattr,
        libc::SYS_mq_notify,
        libc::SYS_mq_open,
        libc::SYS_mq_timedreceive,
        libc::SYS_mq_timedsend,
        libc::SYS_mq_unlink,
        libc::SYS_msgctl,
        libc::SYS_msgget,
        libc::SYS_msgrcv,
        libc::SYS_msgsnd,
        libc::SYS_pipe2,
        libc::SYS_semctl,
        libc::SYS_semget,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        libc::SYS_shmat,
        libc::SYS_shmctl,
        libc::SYS_shmdt,
        libc::SYS_shmget,
    ],
    // Time (to read) and the system (to look at).
    &[
        libc::SYS_clock_getres,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_getitimer,
        libc::SYS_getrandom,
        libc::SYS_gettimeofday,
        libc::SYS_nanosleep,
        libc::SYS_setitimer,
        libc::SYS_sysinfo,
        libc::SYS_timer_create,
        libc::SYS_timer_delete,
        libc::SYS_timer_getoverrun,
        libc::SYS_timer_gettime,
        libc::SYS_timer_settime,
        libc::SYS_times,
        libc::SYS_uname,
    ],
    LEGACY,
];

/// Old forms, of which only x86-64 has numbers.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[i64] = &[
    libc::SYS_access,
    libc::SYS_alarm,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_creat,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_fork,
    libc::SYS_futimesat,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_inotify_init,
    libc::SYS_lchown,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_signalfd,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_time,
    libc::SYS_unlink,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[i64] = &[];

/// Flags of clone(2) that make namespaces.
const NEW_NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// The kinds of socket: family, and the low bits of the type. No raw and no packet sockets.
const SOCKETS: [(i32, i32); 7] = [
    (libc::AF_UNIX, libc::SOCK_STREAM),
    (libc::AF_UNIX, libc::SOCK_DGRAM),
    (libc::AF_UNIX, libc::SOCK_SEQPACKET),
    (libc::AF_INET, libc::SOCK_STREAM),
    (libc::AF_INET, libc::SOCK_DGRAM),
    (libc::AF_INET6, libc::SOCK_STREAM),
    (libc::AF_INET6, libc::SOCK_DGRAM),
];
/// The bits of a socket's type that are no flags.
const SOCKET_TYPE: u64 = 0xf;
/// personality(2): Linux, with 32-bit address space (0x8) or old uname (0x20000), and the question (all ones).
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The filters, compiled: to be installed in this order.
#[derive(Debug)]
pub struct Programs(Vec<BpfProgram>);

impl Programs {
    /// Compiles them. Once for all sandboxes.
    pub fn compile() -> Result<Self, BackendError> {
        let allow = filter(allowed()?, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)?;
        // Of several filters that deny, the one installed last says with what error: these are for programs that ask for
        // a feature and fall back when the kernel does not have it.
        let no_family = filter(
            BTreeMap::from([(libc::SYS_socket, vec![rule(&unknown_families())?])]),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::EAFNOSUPPORT as u32),
        )?;
        // clone3's flags are behind a pointer, where no filter can look; the C libraries fall back to clone. Of the
        // asynchronous files of old, the host has 65,536 events for all (fs.aio-max-nr): one function could take them.
        let missing = filter(
            BTreeMap::from([(libc::SYS_clone3, vec![]), (libc::SYS_io_setup, vec![])]),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS as u32),
        )?;
        Ok(Self(vec![allow, no_family, missing]))
    }

    /// Puts the calling process, and all that it will start, under the filters, for ever.
    pub fn install(&self) -> Result<(), seccompiler::Error> {
        self.0.iter().try_for_each(|program| seccompiler::apply_filter(program))
    }
}

/// Index of an argument, how much of it counts, comparison, value.
type Condition = (u8, SeccompCmpArgLen, SeccompCmpOp, u64);

fn allowed() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().flat_map(|group| group.iter()).map(|&call| (call, vec![])).collect();
    for (call, conditions) in conditional() {
        rules.entry(call).or_default().push(rule(&conditions)?);
    }
    Ok(rules)
}

/// System calls that are allowed with certain arguments. Several entries for one call: any of them.
fn conditional() -> Vec<(i64, Vec<Condition>)> {
    let mut rules = vec![
        (libc::SYS_clone, vec![(0, Qword, MaskedEq(NEW_NAMESPACES as u32 as u64), 0)]),
        (libc::SYS_socketpair, vec![(0, Dword, Eq, libc::AF_UNIX as u64)]),
        // Not: putting characters into a terminal's input.
        (libc::SYS_ioctl, vec![(1, Dword, Ne, libc::TIOCSTI), (1, Dword, Ne, libc::TIOCLINUX)]),
        // Not: the limit of core dumps. PID 1 sets it to 1, with which the kernel does not even start a core_pattern that
        // is a program; with 0, to which anybody may lower it, that program runs, on the host, as root. See core(5).
        (libc::SYS_setrlimit, vec![(0, Dword, Ne, u64::from(libc::RLIMIT_CORE))]),
        (libc::SYS_prlimit64, vec![(1, Dword, Ne, u64::from(libc::RLIMIT_CORE))]),
        (libc::SYS_prlimit64, vec![(2, Qword, Eq, 0)]),
        // Asking which addresses there are, by any of the two types that netlink takes.
        (libc::SYS_socket, vec![(0, Dword, Eq, libc::AF_NETLINK as u64), (2, Dword, Eq, libc::NETLINK_ROUTE as u64)]),
    ];
    for (family, kind) in SOCKETS {
        let conditions = vec![(0, Dword, Eq, family as u64), (1, Dword, MaskedEq(SOCKET_TYPE), kind as u64)];
        rules.push((libc::SYS_socket, conditions));
    }
    for personality in PERSONALITIES {
        rules.push((libc::SYS_personality, vec![(0, Dword, Eq, personality)]));
    }
    // Pipes and sockets and plain files, but no devices.
    for kind in [0, libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK] {
        let is_kind = |argument| vec![(argument, Dword, MaskedEq(u64::from(libc::S_IFMT)), u64::from(kind))];
        rules.push((libc::SYS_mknodat, is_kind(2)));
        #[cfg(target_arch = "x86_64")]
        rules.push((libc::SYS_mknod, is_kind(1)));
    }
    rules
}

fn unknown_families() -> Vec<Condition> {
    let known = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    known.map(|family| (0, Dword, Ne, family as u64)).to_vec()
}

fn rule(conditions: &[Condition]) -> Result<SeccompRule, BackendError> {
    let conditions = conditions
        .iter()
        .map(|(index, length, compare, value)| SeccompCondition::new(*index, length.clone(), compare.clone(), *value));
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    on_match: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, on_match, arch)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiles() {
        assert_eq!(Programs::compile().unwrap().0.len(), 3);
    }

    #[test]
    fn no_call_is_allowed_that_reaches_beyond_the_sandbox() {
        let allowed = allowed().unwrap();
        for call in [
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_io_setup,
            libc::SYS_clone3,
            libc::SYS_pidfd_getfd,
            libc::SYS_perf_event_open,
            libc::SYS_chroot,
        ] {
            assert!(!allowed.contains_key(&call), "{call}");
        }
        // Only with conditions.
        for call in [
            libc::SYS_clone,
            libc::SYS_socket,
            libc::SYS_ioctl,
            libc::SYS_personality,
            libc::SYS_mknodat,
            libc::SYS_setrlimit,
            libc::SYS_prlimit64,
        ] {
            assert!(!allowed[&call].is_empty(), "{call}");
        }
    }
}
