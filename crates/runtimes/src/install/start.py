"""What comes before AWS's runtime interface client: its module search path, and a shorter way to its modules.

With the variable _EMBERBOX_STANDBY the interpreter is started before the function is known: it imports the client, waits to
hear working directory and environment, and is then as if it had been started with these.
"""

import _frozen_importlib as frozen
import _frozen_importlib_external as external
import gc
import marshal
import os
import sys

# Beside this file, of `archive.py`'s making.
ARCHIVE = __file__.rpartition("/")[0] + "/emberbox_start.modules"


def begin():
    """Imports the client. Of a standby, returns once it has its function."""
    standby = os.environ.pop("_EMBERBOX_STANDBY", None)
    if standby is None:
        set_search_path()
    import_client()
    # What was imported is old now, as if it had been looked at: the first collection need not look at all of it.
    gc.freeze()
    gc.unfreeze()
    if standby is not None:
        stand_by(int(standby))


def import_client():
    archive = Archive.open()
    try:
        import awslambdaric.__main__  # noqa: F401
    finally:
        if archive:
            archive.close()


def set_search_path():
    version = "python%d.%d" % sys.version_info[:2]
    paths = [
        os.environ.get("LAMBDA_TASK_ROOT", "/var/task"),
        "/opt/python/lib/" + version + "/site-packages",
        "/opt/python",
    ]
    sys.path[0:0] = paths
    return paths


class Archive:
    """Finds modules of the runtime's and of the standard library's whose bytecode lies in one file.

    They are what they are without it: same code, attributes and loader. What is saved is the search, directory after
    directory and file after file, which is most of an import's time.
    """

    def __init__(self, file, modules):
        self.file = file
        self.modules = modules

    @classmethod
    def open(cls):
        """Nothing where another module of such a name would be found, or bytecode other than that in the file."""
        usual = [frozen.BuiltinImporter, frozen.FrozenImporter, external.PathFinder]
        if sys.flags.optimize or sys.pycache_prefix is not None or sys.meta_path != usual:
            return None
        try:
            file = os.open(ARCHIVE, os.O_RDONLY)
        except OSError:
            return None
        length = int.from_bytes(os.pread(file, 4, 0), "little")
        magic, own, modules = marshal.loads(os.pread(file, length, 4))
        others = [path for path in sys.path if path not in own]
        archive = cls(file, modules)
        if magic != external.MAGIC_NUMBER or hides(others, {name.partition(".")[0] for name in modules}):
            archive.close()
            return None
        sys.meta_path.insert(0, archive)
        return archive

    def close(self):
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        os.close(self.file)

    def find_spec(self, name, path=None, target=None):
        module = self.modules.get(name)
        if module is None:
            return None
        source, cached, package, _, length = module
        loader = self if length else external.ExtensionFileLoader(name, source)
        # As the finder of the standard library makes it.
        spec = frozen.ModuleSpec(name, loader, origin=source)
        spec._set_fileattr = True
        spec.cached = cached
        if package is not None:
            spec.submodule_search_locations = [package]
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        spec = module.__spec__
        source, _, _, start, length = self.modules[spec.name]
        spec.loader = module.__loader__ = external.SourceFileLoader(spec.name, source)
        exec(marshal.loads(os.pread(self.file, length, start)), module.__dict__)


def stand_by(channel):
    import logging
    import time

    with open(channel, "rb") as channel:
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
            names = os.listdir(path or ".")
        except NotADirectoryError:
            # An archive of modules, perhaps.
            return True
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
