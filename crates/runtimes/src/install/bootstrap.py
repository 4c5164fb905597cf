"""Starts AWS's runtime interface client with the module search path that Lambda has.

With the variable _EMBERBOX_STANDBY it is started before the function is known: it imports the client, waits to hear
working directory and environment, and is then as if it had been started with these.
"""

import os
import sys


def set_search_path():
    version = "python%d.%d" % sys.version_info[:2]
    paths = [
        os.environ.get("LAMBDA_TASK_ROOT", "/var/task"),
        "/opt/python/lib/" + version + "/site-packages",
        "/opt/python",
    ]
    sys.path[0:0] = paths
    return paths


def stand_by():
    import logging
    import time

    import awslambdaric.__main__  # noqa: F401

    with open(int(os.environ.pop("_EMBERBOX_STANDBY")), "rb") as channel:
        purpose = channel.read()
    if not purpose:
        sys.exit()
    directory, *variables = os.fsdecode(purpose).split("\0")[:-1]
    environment = dict(variable.split("=", 1) for variable in variables)
    modules = {name.partition(".")[0] for name in sys.modules}
    coerced = os.environ.get("LC_CTYPE")
    os.environ.clear()
    shown = show(environment)
    os.environ.update(environment)
    os.chdir(directory)
    if hides(set_search_path(), modules) or not shown:
        os.execv(sys.orig_argv[0], sys.orig_argv)
    if coerced is not None:
        # Python's own, in the locale C.
        os.environ["LC_CTYPE"] = coerced
    # Times in log records count from here.
    logging._startTime = time.time_ns() if isinstance(logging._startTime, int) else time.time()


def hides(paths, modules):
    """Whether the function brings modules that would have been imported instead of those that were."""
    for path in paths:
        try:
            names = os.listdir(path)
        except OSError:
            continue
        if any(name.partition(".")[0] in modules for name in names):
            return True
    return False


def show(environment):
    """Has /proc/self/environ show the environment; whether it can. Nothing refers to what was there before."""
    text = b"".join(os.fsencode("%s=%s\0" % variable) for variable in environment.items())
    try:
        with open("/proc/self/stat", "rb") as stat:
            # Fields 50 and 51 of proc(5); the third follows the name in brackets.
            start, end = map(int, stat.read().rpartition(b")")[2].split()[47:49])
        if len(text) > end - start:
            return False
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            return memory.write(text.ljust(end - start, b"\0")) == end - start
    except OSError:
        return False


if "_EMBERBOX_STANDBY" in os.environ:
    stand_by()
else:
    set_search_path()

from awslambdaric.__main__ import main  # noqa: E402

if __name__ == "__main__":
    main([sys.argv[0], os.environ.get("_HANDLER", "")])
