"""Starts AWS's runtime interface client with the module search path that Lambda has.

This file is compiled at each start, so what is longer is in a module, which is compiled once.
"""

import gc

# What imports leave behind stays: there is nothing to be found among it.
gc.disable()

import os  # noqa: E402
import sys  # noqa: E402

import emberbox_start  # noqa: E402

emberbox_start.begin()

from awslambdaric.__main__ import main  # noqa: E402

gc.enable()

if __name__ == "__main__":
    main([sys.argv[0], os.environ.get("_HANDLER", "")])
