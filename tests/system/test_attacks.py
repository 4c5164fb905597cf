"""Hostile functions, through the public API: what each tries must fail, and the host and the others must not notice.

The sandbox crate has the same attacks (and more) one layer down; here they run as a user would run them.
"""

import contextlib
import ctypes
import errno
import glob
import ipaddress
import json
import os
import pathlib
import re
import signal
import socket
import uuid

import pytest

from conftest import ECHO, ISOLATION, PYTHON, ROLE, invoke, running, wait_active, wait_until, zip_bytes

pytestmark = pytest.mark.needs("root", "cgroups")


def attack(client, function, code, payload=None, **settings):
    settings = {"Timeout": 20, "MemorySize": 256, **settings}
    result = invoke(client, function("import os, sys, ctypes, socket, subprocess, json, time, signal\n" + code, **settings), payload or {})
    assert result.error is None, result.body
    return result.json


def test_identity_has_no_powers(client, function):
    seen = attack(client, function, '''
def handler(e, c):
    status = dict(l.split(":\\t", 1) for l in open("/proc/self/status").read().splitlines() if ":\\t" in l)
    return {"uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(), **{k: status[k] for k in
        ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")},
        "fds": sorted(int(f) for f in os.listdir("/proc/self/fd"))[:3], "hostname": socket.gethostname()}
''')
    assert seen["uid"] != 0 and seen["gid"] != 0 and seen["groups"] in ([], [seen["gid"]])
    for capability in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(seen[capability], 16) == 0, capability
    assert seen["NoNewPrivs"].strip() == "1" and seen["Seccomp"].strip() == "2"
    assert seen["hostname"] != socket.gethostname()


def test_host_files_are_not_there(client, function, emberbox):
    secret = pathlib.Path(emberbox.data_dir) / "secret"
    secret.write_text("host secret")
    seen = attack(client, function, f'''
def handler(e, c):
    out = {{}}
    for path in ("/etc/shadow", "/root", "/home", "/var/lib", "{secret}", "{emberbox.data_dir}", "/proc/1/root{secret}",
                 "/proc/self/root/../../..{secret}", "/sys/fs/cgroup", "/proc/kcore", "/proc/1/environ", "/proc/1/mem", "/boot", "/run"):
        try:
            out[path] = os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(64).decode("latin1")
        except OSError as error:
            out[path] = None
    out["mounts"] = open("/proc/self/mounts").read()
    out["processes"] = [p for p in os.listdir("/proc") if p.isdigit()]
    return out
''')
    mounts, processes = seen.pop("mounts"), seen.pop("processes")
    assert all(not v for v in seen.values()), {k: v for k, v in seen.items() if v}
    assert len(processes) < 10, "only its own processes"


def test_nothing_but_tmp_can_be_written(client, function):
    seen = attack(client, function, '''
def handler(e, c):
    out = {}
    for path in ("/x", "/var/task/x", "/opt/x", "/usr/bin/x", "/etc/passwd", "/var/runtime/x", "/var/lang/x", "/dev/x",
                 "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/self/oom_score_adj_", "/tmp/ok"):
        try:
            open(path, "a").write("x")
            out[path] = True
        except OSError:
            out[path] = False
    return out
''')
    assert [p for p, written in seen.items() if written] == ["/tmp/ok"]


def test_devices_are_the_harmless_ones(client, function):
    seen = attack(client, function, '''
import stat
def handler(e, c):
    found = {}
    for folder, _, names in os.walk("/"):
        if folder.startswith("/proc"):
            continue
        for name in names:
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                found[path] = [stat.S_ISCHR(mode), os.major(os.lstat(path).st_rdev), os.minor(os.lstat(path).st_rdev)]
    return found
''')
    assert seen == {
        "/dev/null": [True, 1, 3], "/dev/zero": [True, 1, 5], "/dev/full": [True, 1, 7], "/dev/random": [True, 1, 8],
        "/dev/urandom": [True, 1, 9], "/dev/tty": [True, 5, 0],
    }


def test_kernel_doors_are_shut(client, function):
    assert open_doors(client, function) == []


def open_doors(client, function):
    """What the kernel would do for a function of what it should not."""
    seen = attack(client, function, '''
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    result = libc.syscall(number, *args)
    return ctypes.get_errno() if result == -1 else "allowed"
def handler(e, c):
    out = {
        "mount": call(165, b"none", b"/tmp", b"tmpfs", 0, 0), "umount": call(166, b"/tmp", 0), "unshare_user": call(272, 0x10000000),
        "unshare_mount": call(272, 0x20000), "setns": call(308, 0, 0), "ptrace": call(101, 16, 1, 0, 0), "pivot_root": call(155, b"/tmp", b"/tmp"),
        "chroot": call(161, b"/tmp"), "mknod": call(133, b"/tmp/disk", 0o60666, 0x800), "bpf": call(321, 0, 0, 0), "keyctl": call(250, 0, 0, 0),
        "perf": call(298, 0, 0, 0, 0, 0), "userfaultfd": call(323, 0), "io_uring": call(425, 1, 0), "init_module": call(175, 0, 0, b""),
        "reboot": call(169, 0, 0, 0, 0), "vm_read": call(310, 1, 0, 0, 0, 0, 0), "clone_newuser": call(56, 0x10000000 | 17, 0, 0, 0, 0),
        "setuid": call(105, 0), "sethostname": call(170, b"x", 1), "open_by_handle": call(304, 0, 0, 0), "settime": call(164, b"0" * 16, 0),
    }
    for name, family, kind in (("raw", socket.AF_INET, socket.SOCK_RAW), ("packet", 17, socket.SOCK_RAW), ("vsock", 40, socket.SOCK_STREAM), ("alg", 38, 5)):
        try:
            socket.socket(family, kind, 1 if name == "raw" else 0); out[name] = "allowed"
        except OSError as error:
            out[name] = error.errno
    try:
        os.kill(1, 9); out["kill_init"] = "allowed"
    except OSError as error:
        out["kill_init"] = error.errno
    return out
''')
    return [k for k, v in seen.items() if v == "allowed"]


def test_host_and_neighbours_cannot_be_reached(emberbox, client, function):
    listener = socket.socket()
    listener.bind(("0.0.0.0", 0))
    listener.listen()
    port = listener.getsockname()[1]
    own = int(emberbox.endpoint.rsplit(":", 1)[1])
    addresses = [line.split()[3].split("/")[0] for line in os.popen("ip -o -4 addr").read().splitlines()]
    targets = [[a, p] for a in dict.fromkeys(addresses + ["127.0.0.1", "169.254.169.254", "10.0.0.1"]) for p in (port, own, 80)]
    seen = attack(client, function, f'''
def handler(e, c):
    # All at once: a host with many sandboxes has many addresses.
    tries = [(socket.socket(), target) for target in {targets!r}]
    for s, (address, port) in tries:
        s.setblocking(False); s.connect_ex((address, port))
    time.sleep(2)
    out = []
    for s, target in tries:
        try:
            s.getpeername(); out.append(target)
        except OSError:
            pass
    return out
''', Timeout=60)
    listener.close()
    assert seen == []


@pytest.mark.needs("egress")
def test_egress_reaches_what_is_allowed_and_no_neighbour():
    """The positive control of the test above: the network works, and is shut where it should be."""
    with socket.create_server(("0.0.0.0", 0)) as allowed, socket.create_server(("0.0.0.0", 0)) as forbidden:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("1.1.1.1", 53))
            own = probe.getsockname()[0]
        ports = allowed.getsockname()[1], forbidden.getsockname()[1]
        with running(config=f'stop_limit = "0s"\n[sandbox]\nallow = ["{own}:{ports[0]}"]\n') as server:
            client = server.client()
            code = """
import socket, time
def reached(address, port):
    try:
        socket.create_connection((address, port), 0.5).close()
        return True
    except OSError:
        return False
def handler(e, c):
    if e["do"] == "connect":
        return [reached(*target) for target in e["targets"]]
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(("1.1.1.1", 53)); own = s.getsockname()[0]
    server = socket.create_server(("0.0.0.0", 7000))
    print("listening on", own, reached(own, 7000), flush=True)
    time.sleep(20)
"""
            for name in ("f", "neighbour"):
                client.create_function(
                    FunctionName=name, Runtime=PYTHON, Handler="index.handler", Role=ROLE, Timeout=30, MemorySize=512,
                    Code={"ZipFile": zip_bytes({"index.py": code})},
                )
                wait_active(client, name)

            def connect(*targets):
                return invoke(client, "f", {"do": "connect", "targets": targets}).json

            assert connect([own, ports[0]], [own, ports[1]]) == [True, False]
            client.invoke(FunctionName="neighbour", InvocationType="Event", Payload='{"do": "listen"}')
            logs = server.client("logs")

            def listening():
                with contextlib.suppress(logs.exceptions.ResourceNotFoundException):
                    events = logs.filter_log_events(logGroupName="/aws/lambda/neighbour")["events"]
                    return [e["message"].split() for e in events if e["message"].startswith("listening on")]

            ((_, _, address, itself),) = wait_until(listening, 15, "the neighbour listens")
            assert itself == "True", "the neighbour reaches its own server"
            assert address != own
            gateway = str(ipaddress.ip_address(address) - 1)
            assert connect([address, 7000], [address, 9001], [gateway, ports[0]], [own, ports[0]]) == [False, False, False, True]


@pytest.mark.process_only("it compares numbers of one kernel's")
def test_namespaces_are_the_functions_own(client, function):
    """Of each kind one of its own, and so System V's shared memory, which has no files, is not shared."""
    kinds = "cgroup", "ipc", "mnt", "net", "pid", "user", "uts"
    code = """
libc = ctypes.CDLL(None, use_errno=True)
def handler(e, c):
    made = libc.shmget(e["key"], 4096, 0o1666) if e["make"] else None
    found = libc.shmget(e["key"], 4096, 0o666)
    return {"made": made, "found": found, "errno": ctypes.get_errno(),
            "ids": {k: os.readlink("/proc/self/ns/" + k) for k in %r}}
""" % (kinds,)
    libc = ctypes.CDLL(None, use_errno=True)
    key = uuid.uuid4().int & 0x7FFFFFF | 1
    on_host = libc.shmget(key, 4096, 0o1666)
    assert on_host >= 0
    try:
        first = attack(client, function, code, {"key": key, "make": False})
        assert first["found"] == -1, "the host's"
        maker = attack(client, function, code, {"key": key + 1, "make": True})
        last = attack(client, function, code, {"key": key + 1, "make": False})
        assert maker["found"] == maker["made"] and last["found"] == -1, (maker, last)
        assert libc.shmget(key + 1, 4096, 0o666) == -1, "the host does not see the function's"
        for kind in kinds:
            ids = [os.readlink(f"/proc/self/ns/{kind}"), *(seen["ids"][kind] for seen in (first, maker, last))]
            assert len(set(ids)) == 4, (kind, ids)
    finally:
        libc.shmctl(on_host, 0, None)


@pytest.mark.process_only("a pipe does not reach through a disk")
@pytest.mark.needs("landlock")
def test_landlock_shuts_what_a_read_only_mount_leaves_open(tmp_path):
    """A pipe in a layer: to write into it changes no file system, so that a read-only mount lets it pass. Landlock does not."""
    opt, runtimes = tmp_path / "opt", tmp_path / "runtimes.d"
    for directory in (opt, runtimes):
        directory.mkdir()
    os.mkfifo(opt / "pipe")
    (opt / "file").write_text("")
    for path in (opt / "pipe", opt / "file", opt, tmp_path):
        path.chmod(0o777)
    (runtimes / "own.toml").write_text(f'name = "own"\nextends = "{PYTHON}"\n[[mounts]]\nsource = "{opt}"\ntarget = "/opt"\n')
    code = """
import os
def tried(path, flags):
    try:
        os.close(os.open(path, flags)); return 0
    except OSError as error:
        return error.errno
def handler(e, c):
    return {"mount permits": [os.access("/opt/" + n, os.W_OK) for n in ("pipe", "file")],
            "written": [tried("/opt/" + n, os.O_WRONLY | os.O_NONBLOCK) for n in ("pipe", "file")],
            "read": [tried("/opt/" + n, os.O_RDONLY | os.O_NONBLOCK) for n in ("pipe", "file")]}
"""
    with running(config=f'[runtimes]\ndirs = ["{runtimes}"]\n') as server:
        client = server.client()
        client.create_function(
            FunctionName="f", Runtime="own", Handler="index.handler", Role=ROLE, Timeout=10, Code={"ZipFile": zip_bytes({"index.py": code})}
        )
        wait_active(client, "f")
        reader = os.open(opt / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        try:
            seen = invoke(client, "f").json
        finally:
            os.close(reader)
    assert seen == {
        "mount permits": [True, False], "read": [0, 0],
        "written": [errno.EACCES, errno.EROFS],
    }


def test_neighbours_tmp_and_code_are_apart(client, function):
    write = 'def handler(e, c):\n    open("/tmp/mine", "w").write("secret")\n    return os.listdir("/tmp")\n'
    assert attack(client, function, write) == ["mine"]
    assert "mine" not in attack(client, function, 'def handler(e, c):\n    return os.listdir("/tmp") + os.listdir("/var/task")\n')


def test_fork_bomb_is_bounded(client, function, emberbox):
    other = function(ECHO)
    invoke(client, other, 1)
    seen = attack(client, function, '''
def handler(e, c):
    children = []
    try:
        for _ in range(5000):
            pid = os.fork()
            if pid == 0:
                time.sleep(60); os._exit(0)
            children.append(pid)
    except OSError as error:
        pass
    count = len(children)
    for pid in children: os.kill(pid, 9)
    for pid in children: os.waitpid(pid, 0)
    return count
''', Timeout=60, MemorySize=1769)
    assert 10 < seen <= 1024
    assert invoke(client, other, 2).json == 2


def test_memory_bomb_is_reported_as_out_of_memory(client, function):
    name = function("def handler(e, c):\n    return len(bytearray(e))\n", Timeout=30)
    assert invoke(client, name, 1000).json == 1000
    result = invoke(client, name, 500_000_000, LogType="Tail")
    assert result.error == "Unhandled"
    assert result.json["errorType"] == "Runtime.OutOfMemory"
    assert result.json["errorMessage"] == f"RequestId: {result.request_id} Error: Runtime exited with error: signal: killed"
    assert "Max Memory Used: 128 MB" in result.log
    assert invoke(client, name, 1000).json == 1000, "the next invocation works"


def test_disk_filler_stops_at_ephemeral_storage(client, function):
    seen = attack(client, function, '''
def handler(e, c):
    written = 0
    try:
        with open("/tmp/fill", "wb") as f:
            while written < 3 << 30:
                written += f.write(b"x" * (1 << 20)); f.flush()
    except OSError as error:
        return [written >> 20, error.errno]
''', Timeout=120, MemorySize=512)
    assert 400 < seen[0] <= 512 and seen[1] == 28, "ENOSPC at 512 MB, and the page cache is no memory of the function"


@pytest.mark.process_only("shares of CPU are not enforced under software emulation")
def test_cpu_share(client, function):
    burn = "import time\ndef handler(e, c):\n    end = time.monotonic() + 2\n    while time.monotonic() < end: pass\n    return time.process_time()\n"
    small = function(burn, MemorySize=177, Timeout=30)
    invoke(client, small)
    started = invoke(client, small).json
    again = invoke(client, small).json
    assert 0.05 < again - started < 0.6, "a tenth of a vCPU gives about 0.2 s of CPU in 2 s"


def test_symlink_in_package_leads_nowhere(client, function):
    seen = attack(client, function, '''
def handler(e, c):
    os.symlink("/proc/1/root/etc/shadow", "/tmp/link")
    try:
        return open("/tmp/link").read()
    except OSError as error:
        return None
''')
    assert seen is None


def test_a_runtime_that_lies(client, function):
    """A bootstrap that speaks the Runtime API wrongly gets refusals, and its caller an error; nothing else happens."""
    name = function(None, files={"index.py": '''
import http.client, json, os
api = os.environ["AWS_LAMBDA_RUNTIME_API"]
def post(path, body, headers={}):
    c = http.client.HTTPConnection(api); c.request("POST", "/2018-06-01/runtime/" + path, body, headers); r = c.getresponse(); return r.status, r.read().decode()
def handler(event, context):
    mine = context.aws_request_id
    return [post("invocation/00000000-0000-0000-0000-000000000000/response", "{}")[0],
            post("invocation/" + mine + "/response", "{}", {"Lambda-Runtime-Invocation-Id": "stale"})[0],
            post("invocation/../../x/response", "{}")[0], post("init/error", "{}")[0]]
'''})
    statuses = invoke(client, name).json
    assert all(400 <= s < 500 for s in statuses), statuses
    assert invoke(client, name).error is None


def test_a_response_that_breaks_off(client, function):
    """The runtime's request ends before its Content-Length: refused, and the invocation goes on."""
    name = function(None, files={"index.py": """
import os, socket
def handler(event, context):
    host, port = os.environ["AWS_LAMBDA_RUNTIME_API"].split(":")
    s = socket.create_connection((host, int(port)))
    path = "/2018-06-01/runtime/invocation/" + context.aws_request_id + "/response"
    s.sendall(("POST " + path + " HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 100\\r\\n\\r\\n[1, 2").encode())
    s.shutdown(socket.SHUT_WR)
    answer = b""
    while part := s.recv(4096):
        answer += part
    return answer.decode()
"""})
    for _ in range(2):
        result = invoke(client, name)
        assert result.error is None, result.body
        head, _, body = result.json.partition("\r\n\r\n")
        assert head.split()[1] == "400" and json.loads(body)["errorType"] == "TruncatedHTTPRequest", result.json


def leftovers(data_dir):
    """What an Emberbox could leave on the host: its processes, cgroups, mounts, links, loop devices and nft tables."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            text = open(path, "rb").read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(data_dir) in text:
            found.append(text)
    found += [l for l in open("/proc/mounts") if str(data_dir) in l]
    return found


def state():
    """Counts that must be the same before and after."""
    return {
        "cgroups": sorted(p for p in glob.glob("/sys/fs/cgroup/*/emberbox/*/*") if os.path.isdir(p)),
        "links": sorted(l for l in os.popen("ip -o link").read().splitlines() if "eb" in l.split(":")[1]),
        "tables": sorted(os.popen("nft list tables 2>/dev/null").read().splitlines()),
        "loops": os.popen("losetup -a").read().count("\n"),
    }


def instances(pid):
    """Numbers of the instances whose sandboxes are descendants of a process: their cgroups and nft tables carry them."""
    parents, found = {}, set()
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            head, _, tail = open(path).read().rpartition(")")
        except OSError:
            continue
        parents[int(head.split(" ")[0])] = int(tail.split()[1])

    def descends(process):
        while process in parents and process != pid:
            process = parents[process]
        return process == pid

    for process in filter(descends, list(parents)):
        try:
            found |= set(re.findall(r"/emberbox/([^/\n]+)", open(f"/proc/{process}/cgroup").read()))
        except OSError:
            continue
    return found


def test_nothing_outlives_a_stop_or_a_kill():
    for how in (signal.SIGTERM, signal.SIGKILL):
        with running() as server:
            mine = server.client()
            mine.create_function(
                FunctionName="f", Runtime=PYTHON, Handler="index.handler", Role=ROLE, Code={"ZipFile": zip_bytes({"index.py": ECHO})}
            )
            wait_active(mine, "f")
            assert invoke(mine, "f", 1).json == 1
            own = instances(server.process.pid)
            assert own, "its sandboxes are in cgroups of its own"
            server.stop(how)
            if ISOLATION == "microvm" and how == signal.SIGKILL:
                # Its processes end by themselves; nobody is left to remove their cgroups but the next start.
                wait_until(lambda: not leftovers(server.data_dir), 10, f"no processes left: {leftovers(server.data_dir)}")
                server.start().stop()
            wait_until(lambda: not leftovers(server.data_dir), 10, f"no processes or mounts left after {how!r}: {leftovers(server.data_dir)}")
            wait_until(
                lambda: not [p for n in own for p in glob.glob(f"/sys/fs/cgroup/*/emberbox/{n}/*/")], 10, f"no cgroups left after {how!r}"
            )
            wait_until(lambda: not [t for t in state()["tables"] if t.endswith(tuple(f"emberbox_{n}" for n in own))], 10, "no nft table left")
