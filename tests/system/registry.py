"""A real registry (Debian's docker-registry), and container images that are made on the spot and pushed to it."""

import gzip
import hashlib
import http.client
import io
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
OCI = "application/vnd.oci.image."


class Registry:
    """One `docker-registry` on a port of its own. With `login` it makes a user, whose name and password it says."""

    def __init__(self, login=False):
        self.dir = tempfile.TemporaryDirectory(prefix="emberbox-registry-")
        config = {
            "version": 0.1, "log": {"level": "info"}, "http": {"addr": "127.0.0.1:0"},
            "storage": {"filesystem": {"rootdirectory": self.dir.name + "/data"}},
        }
        if login:
            config["auth"] = {"htpasswd": {"realm": "private", "path": self.dir.name + "/htpasswd"}}
        path = pathlib.Path(self.dir.name, "config.yml")
        path.write_text(json.dumps(config))  # YAML as well
        self.process = subprocess.Popen(
            ["docker-registry", "serve", str(path)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        self.lines = []
        self.address = None
        for line in self.process.stderr:
            self.lines.append(line)
            if "listening on " in line:
                self.address = line.split("listening on ")[1].split('"')[0].split()[0]
                break
        assert self.address, "".join(self.lines)
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True).start()
        self.password = None
        if login:
            said = re.search(r'password="?([^" ]+)"? user="?docker"?|user="?docker"? password="?([^" ]+)"?', "".join(self.lines))
            self.password = said and (said[1] or said[2])

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.dir.cleanup()

    def request(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection(self.address, timeout=30)
        if self.password:
            import base64
            headers["Authorization"] = "Basic " + base64.b64encode(f"docker:{self.password}".encode()).decode()
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        data = response.read()
        assert response.status < 300, (method, path, response.status, data)
        return response

    def blob(self, repository, data):
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        started = self.request("POST", f"/v2/{repository}/blobs/uploads/", **{"Content-Length": "0"})
        location = started.headers["Location"].split(self.address)[-1]
        self.request("PUT", f"{location}&digest={digest}", data, **{"Content-Type": "application/octet-stream"})
        return digest

    def push(self, name, layers, config=None, architecture=ARCHITECTURE):
        """Pushes an image of uncompressed tars to `repository:tag`; gives its URI and its digest."""
        repository, tag = name.rsplit(":", 1)
        descriptors = []
        for layer in layers:
            packed = gzip.compress(layer, 1, mtime=0)
            digest = self.blob(repository, packed)
            descriptors.append({"mediaType": OCI + "layer.v1.tar+gzip", "digest": digest, "size": len(packed)})
        ids = ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]
        about = {
            "os": "linux", "architecture": architecture, "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": ids},
        }
        text = json.dumps(about).encode()
        manifest = {
            "schemaVersion": 2, "mediaType": OCI + "manifest.v1+json", "layers": descriptors,
            "config": {"mediaType": OCI + "config.v1+json", "digest": self.blob(repository, text), "size": len(text)},
        }
        text = json.dumps(manifest).encode()
        self.request("PUT", f"/v2/{repository}/manifests/{tag}", text, **{"Content-Type": manifest["mediaType"]})
        return f"{self.address}/{name}", "sha256:" + hashlib.sha256(text).hexdigest()


def layer(entries):
    """A tar of (path, content): text or bytes, None for a directory, or a TarInfo's fields."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, content in entries:
            info = tarfile.TarInfo(path)
            info.mtime, info.mode, data = 1_700_000_000, 0o755, b""
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, dict):
                data = content.pop("data", b"")
                for field, value in content.items():
                    setattr(info, field, value)
            else:
                data = content.encode() if isinstance(content, str) else content
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


# A runtime client in Python's standard library; an event may bring a program, which leaves its `result`.
CLIENT = """
import ctypes, errno, http.client, json, os, pwd, socket, stat, subprocess, sys
count = 0
while True:
    connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    connection.request("GET", "/2018-06-01/runtime/invocation/next")
    response = connection.getresponse()
    event = json.loads(response.read())
    request = response.headers["Lambda-Runtime-Aws-Request-Id"]
    names = {}
    if "run" in event:
        exec(event["run"], globals(), names)
    answer = {
        "version": open("/app/version").read(), "argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ),
        "count": count, "result": names.get("result"),
    }
    count += 1
    connection.request("POST", f"/2018-06-01/runtime/invocation/{request}/response", json.dumps(answer))
    connection.getresponse().read()
"""


def stripped(path):
    """The file without its debugging symbols, which make up most of some Pythons."""
    data = pathlib.Path(path).read_bytes()
    if data[:4] == b"\x7fELF" and len(data) > 5_000_000 and shutil.which("strip"):
        with tempfile.NamedTemporaryFile() as out:
            subprocess.run(["strip", "-o", out.name, path], check=True)
            data = pathlib.Path(out.name).read_bytes()
    return data


def python_layer():
    """This host's Python: the interpreter, what it is linked to, and what `CLIENT` imports, at their own places."""
    program = os.path.realpath(os.path.join(sys.base_prefix, "bin", "python%d.%d" % sys.version_info[:2]))
    # Without OpenSSL, which is larger than most of the rest.
    imports = "import sys; sys.modules['ssl'] = sys.modules['_hashlib'] = None; " + CLIENT.strip().splitlines()[0] + ", encodings.idna"
    told = "; print([m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)])"
    loaded = subprocess.run([program, "-I", "-S", "-c", imports + told], capture_output=True, text=True, check=True)
    files = {program, *eval(loaded.stdout)}
    for path in [*files]:
        if path == program or path.endswith(".so"):
            linked = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
            files.update(re.findall(r"(/\S+)", linked))
    files = {path for path in files if os.path.isabs(path) and os.path.isfile(path)}
    entries = [(path.lstrip("/"), stripped(path)) for path in sorted(files)]
    # What marks the place of the library.
    stdlib = os.path.dirname(os.__file__)
    entries.append((stdlib.lstrip("/") + "/lib-dynload/", None))
    entries.append(("usr/local/bin/python3", {"type": tarfile.SYMTYPE, "linkname": program}))
    return layer(entries)
