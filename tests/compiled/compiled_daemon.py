"""A daemon like any other, as machine code: goes on as the command line of the site that `COMPILED_SITE` names."""

import os
import sys

SITE = "COMPILED_SITE"

if __name__ == "__main__":
    variables = {**os.environ, "PYTHONPATH": os.environ[SITE], "PYTHONSAFEPATH": "1"}
    os.execve(sys.executable, [sys.executable, "-m", "node.cli.main", *sys.argv[1:]], variables)
