"""A function that tells all that it can see of how it was started. See test_standbys.py."""

import sys

# Before anything is imported here.
modules, importers = sorted(sys.modules), sorted(sys.path_importer_cache)

import ctypes  # noqa: E402
import fcntl  # noqa: E402
import gc  # noqa: E402
import hashlib  # noqa: E402
import locale  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import re  # noqa: E402
import resource  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import stat  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
import uuid  # noqa: E402

libc = ctypes.CDLL(None, use_errno=True)


def text(path):
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read()
    except OSError as error:
        return error.errno


def called(result):
    """What a call of the C library came to."""
    return result if result != -1 else -ctypes.get_errno()


def interpreter():
    thread = threading.current_thread()
    return {
        "modules": modules,
        "importers": importers,
        "path": sys.path,
        "argv": [sys.argv, sys.orig_argv, sys.executable, sys.prefix, sys.exec_prefix],
        "flags": [str(sys.flags), sys.warnoptions, sys._xoptions, sys.dont_write_bytecode],
        "finders": [getattr(finder, "__qualname__", "?") for finder in sys.meta_path + sys.path_hooks],
        "main": sorted(vars(sys.modules["__main__"])),
        "streams": [
            [stream.encoding, stream.errors, stream.fileno(), stream.isatty()] for stream in (sys.stdin, sys.__stdout__, sys.__stderr__)
        ],
        "encoding": [sys.getfilesystemencoding(), sys.getfilesystemencodeerrors(), locale.getpreferredencoding(False)],
        "locale": [locale.setlocale(kind) for kind in (locale.LC_ALL, locale.LC_CTYPE, locale.LC_NUMERIC)],
        "collector": [gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()],
        "limits": [sys.getrecursionlimit(), sys.getswitchinterval()],
        "threads": [thread.name, thread.daemon, threading.active_count(), len(os.listdir("/proc/self/task"))],
        "logging": [logging.getLogger().level, [repr(handler) for handler in logging.getLogger().handlers]],
        "traces": [repr(sys.gettrace()), repr(sys.getprofile()), repr(sys.excepthook), repr(threading.excepthook)],
        "timezone": [time.tzname, time.timezone],
    }


def plain(variables):
    """Without the sandbox's own number."""
    return [re.sub("[0-9a-f]{32}", "", variable) for variable in variables]


def environment():
    strings = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
    own = []
    while strings[len(own)] is not None:
        own.append(strings[len(own)].decode())
    return {
        "of Python": plain(f"{name}={value}" for name, value in os.environ.items()),
        "of the C library": plain(own),
        "of the kernel": plain(text("/proc/self/environ").rstrip("\0").split("\0")),
    }


def process():
    fields = text("/proc/self/stat").rpartition(")")[2].split()
    status = dict(line.split(":\t", 1) for line in text("/proc/self/status").splitlines())
    varying = ("Vm", "Hugetlb", "Rss", "Pid", "Tgid", "NSpid", "NStgid", "NSpgid", "NSsid", "Ngid", "volun", "nonvol", "Cpus_", "Mems_")
    return {
        "pid": os.getpid(),
        "leads": [os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid()],
        "parent": os.getppid(),
        "terminal": fields[4],
        "status": {name: value for name, value in status.items() if not name.startswith(varying)},
        "rlimits": text("/proc/self/limits"),
        "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
        "umask": [os.umask(0o22), os.umask(0o22)],
        "cwd": [os.getcwd(), os.readlink("/proc/self/cwd"), os.readlink("/proc/self/root"), os.readlink("/proc/self/exe")],
        "scheduling": [os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), len(os.sched_getaffinity(0)), text("/proc/self/timerslack_ns")],
        "memory": [text(f"/proc/self/{name}") for name in ("oom_score_adj", "coredump_filter", "personality")],
        "names": [text(f"/proc/self/{name}") for name in ("comm", "cmdline", "loginuid", "sessionid", "attr/current")],
        # PR_GET_*: DEATHSIG, DUMPABLE, KEEPCAPS, TIMING, SECCOMP, TSC, SECUREBITS, TIMERSLACK, NO_NEW_PRIVS, THP_DISABLE.
        "prctl": [called(libc.prctl(option, 0, 0, 0, 0)) for option in (3, 7, 13, 21, 27, 30, 39, 42)],
        "signals": {name.name: repr(signal.getsignal(name)) for name in signal.valid_signals() if hasattr(name, "name")},
        "timers": [signal.getitimer(kind) for kind in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)],
        "children": called(libc.waitpid(-1, None, 1)),
        "libraries": sorted({line.split()[5] for line in text("/proc/self/maps").splitlines() if ".so" in line}),
        "others": len([name for name in os.listdir("/proc") if name.isdigit()]),
    }


def descriptors():
    found = {}
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            what, of = os.readlink(f"/proc/self/fd/{number}"), os.fstat(number)
        except OSError:
            continue  # that of the list itself
        flags = [fcntl.fcntl(number, fcntl.F_GETFD), fcntl.fcntl(number, fcntl.F_GETFL)]
        room = fcntl.fcntl(number, 1032) if stat.S_ISFIFO(of.st_mode) else None  # F_GETPIPE_SZ
        found[number] = [what.partition(":")[0], flags, oct(of.st_mode), room, of.st_uid, of.st_gid]
    return found


def files():
    mounts = [line.split() for line in text("/proc/self/mountinfo").splitlines()]
    return {
        # Place, what of the file system, options, and those after the optional fields, without the device.
        "mounts": sorted([m[4], m[5], *m[6 : m.index("-")], m[m.index("-") + 1], re.sub("id=\\d+", "id=", m[-1])] for m in mounts),
        # But for the code, which each server keeps in its own place.
        "sources": sorted([m[4], m[3]] for m in mounts if m[4] not in ("/tmp", "/var/task")),
        "there": {
            place: sorted(
                (name, oct(of.st_mode), of.st_uid, of.st_gid)
                for name in os.listdir(place)
                if not name.isdigit() and (of := os.lstat(f"{place}/{name}"))
            )
            for place in ("/", "/tmp", "/dev", "/etc", "/proc", "/opt", "/var", "/var/task", "/var/runtime")
        },
        "tmp": [getattr(os.statvfs("/tmp"), name) for name in ("f_blocks", "f_bfree", "f_files", "f_ffree", "f_flag")],
        "cgroups": [line.split(":")[1] for line in text("/proc/self/cgroup").splitlines()],
        "network": [socket.if_nameindex(), socket.gethostname(), text("/etc/hosts"), text("/etc/resolv.conf")],
        "sockets": [text(f"/proc/net/{name}").count("\n") for name in ("route", "arp", "tcp", "tcp6", "udp", "udp6", "raw", "unix")],
        "kernel": [text("/proc/sys/kernel/hostname"), text("/proc/sys/net/ipv6/conf/all/disable_ipv6"), text("/proc/sysvipc/shm")],
    }


def attempt(action):
    try:
        return repr(action())
    except OSError as error:
        return error.errno or str(error)
    except ValueError as error:
        return str(error)


def attempts():
    def system_call(*arguments):
        return lambda: called(libc.syscall(*arguments))

    ptrace, keyctl, bpf, userfaultfd, io_uring, mount, unshare, pidfd_open = 101, 250, 321, 323, 425, 165, 272, 434
    tries = {
        "write the code": lambda: open("/var/task/mine", "w"),
        "write the root": lambda: open("/mine", "w"),
        "write a device": lambda: open("/dev/mine", "w"),
        "write a setting": lambda: open("/proc/sys/kernel/hostname", "w"),
        "write /tmp": lambda: open("/tmp/mine", "w").close() or os.unlink("/tmp/mine"),
        "look into PID 1": lambda: os.listdir("/proc/1/fd"),
        "look for the mounter": lambda: os.listdir("/proc/2" if os.getpid() != 2 else "/proc/4000"),
        "kill PID 1": lambda: os.kill(1, 9),
        "kill the mounter": lambda: os.kill(2 if os.getpid() != 2 else 4000, 9),
        "chroot": lambda: os.chroot("/tmp"),
        "become root": lambda: os.setuid(0),
        "device": lambda: os.mknod("/tmp/device", 0o600 | stat.S_IFBLK, 0),
        "mount": system_call(mount, b"none", b"/tmp", b"tmpfs", 0, 0),
        "unshare": system_call(unshare, 0x10000000),
        "ptrace": system_call(ptrace, 16, 1, 0, 0),
        "keyctl": system_call(keyctl, 0, -3, 0),
        "bpf": system_call(bpf, 0, 0, 0),
        "userfaultfd": system_call(userfaultfd, 0),
        "io_uring": system_call(io_uring, 1, 0),
        "pidfd": system_call(pidfd_open, 1, 0),
        "raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
        "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "more descriptors": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048)),
        "own code as a library": lambda: ctypes.CDLL("libown.so")._name,
        "own library of the directory lib": lambda: ctypes.CDLL("libother.so")._name,
    }
    return {name: attempt(action) for name, action in tries.items()}


def secrets():
    """What must not be the same twice."""
    auxiliary = ctypes.CDLL(None).getauxval
    auxiliary.restype = ctypes.c_void_p
    return {
        "random": hashlib.sha256(repr(random.getstate()).encode()).hexdigest(),
        "urandom": os.urandom(16).hex(),
        "uuid": [str(uuid.uuid4()), str(uuid.uuid1())],
        "hash": hash("a text"),
        "stack": hex(ctypes.addressof(ctypes.c_int())),
        "canary": ctypes.string_at(auxiliary(25), 16).hex(),  # AT_RANDOM
        "temporary name": next(__import__("tempfile")._get_candidate_names()),
    }


seen = {
    "interpreter": interpreter(),
    "environment": environment(),
    "process": process(),
    "descriptors": descriptors(),
    "files": files(),
    "attempts": attempts(),
}
own = secrets()
kernel = len(text("/proc/self/environ"))
since = [time.time() - (logging._startTime / 1e9 if isinstance(logging._startTime, int) else logging._startTime)]


def handler(event, context):
    logging.getLogger().debug("a word of debugging")
    return {
        # The room that a standby has for its later environment.
        "standby": kernel > 8000,
        "seen": seen,
        "secrets": own,
        "since": since[0],
        "round": os.environ.get("ROUND"),
        "stream": os.environ["AWS_LAMBDA_LOG_STREAM_NAME"],
        "textwrap": __import__("textwrap").__file__,
    }
