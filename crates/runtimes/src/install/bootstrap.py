"""Starts AWS's runtime interface client with the module search path that Lambda has."""

import os
import sys

_version = "python%d.%d" % sys.version_info[:2]
sys.path[0:0] = [
    os.environ.get("LAMBDA_TASK_ROOT", "/var/task"),
    "/opt/python/lib/" + _version + "/site-packages",
    "/opt/python",
]

from awslambdaric.__main__ import main  # noqa: E402

if __name__ == "__main__":
    main([sys.argv[0], os.environ.get("_HANDLER", "")])
