"""Puts the bytecode of all modules that AWS's runtime interface client imports into one file, for `start.py`; of those that are
shared libraries, only where they are.

Run by the runtime's own interpreter, once its modules are compiled: archive.py LANG RUNTIME, the directories that functions
see as /var/lang and /var/runtime. The file is a head, with its length in four bytes (little endian) before it, and then the
bytecode of each module, as it is in their files. The head is, marshalled, the magic number of the bytecode, what of the
module search path is the runtime's own, and for each module: its source, the file of its bytecode, the package's directory
(or nothing), and offset and length of its bytecode here (0 of a library).
"""

import importlib.util
import marshal
import os
import sys


def main(lang, runtime):
    sys.path.insert(0, runtime)
    import emberbox_start  # noqa: F401
    import awslambdaric.__main__  # noqa: F401

    def seen(path):
        for directory, name in ((lang, "/var/lang"), (runtime, "/var/runtime")):
            if path == directory or path.startswith(directory + "/"):
                return name + path[len(directory) :]
        return None

    found = []
    for name, module in sorted(sys.modules.items()):
        spec = module.__spec__
        origin = spec and spec.origin
        if name in ("__main__", "emberbox_start") or not origin or not seen(origin):
            continue
        if origin.endswith(".so"):
            found.append((name, seen(origin), None, None, b""))
            continue
        cached = importlib.util.cache_from_source(origin)
        try:
            with open(cached, "rb") as file:
                bytecode = file.read()
        except OSError:
            continue
        # Sixteen bytes come before the code: magic number, flags (1: by a hash, unchecked), hash.
        if bytecode[:8] != importlib.util.MAGIC_NUMBER + b"\x01\0\0\0":
            continue
        package = os.path.dirname(origin) if spec.submodule_search_locations is not None else None
        found.append((name, seen(origin), seen(cached), package and seen(package), bytecode[16:]))

    own = sorted({seen(path) for path in sys.path} - {None})

    def head(start):
        modules = {}
        for name, source, cached, package, bytecode in found:
            modules[name] = (source, cached, package, start, len(bytecode))
            start += len(bytecode)
        return marshal.dumps((importlib.util.MAGIC_NUMBER, own, modules))

    # A number takes as much room whatever it is.
    length = len(head(0))
    whole = head(4 + length)
    assert len(whole) == length
    with open(os.path.join(runtime, "emberbox_start.modules"), "wb") as file:
        file.write(length.to_bytes(4, "little") + whole)
        file.writelines(bytecode for *_, bytecode in found)
    print(len(found))


if __name__ == "__main__":
    main(*map(os.path.realpath, sys.argv[1:]))
