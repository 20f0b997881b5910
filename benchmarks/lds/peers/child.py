"""A peer's process: `python -m benchmarks.lds.peers.child MODULE FOLDER OPTIONS`, in the environment of the peers.

Reads a work's files in FOLDER, runs `main` of this package's MODULE with OPTIONS (JSON), which writes FOLDER/answer.npz.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import torch

from benchmarks.lds.peers.loading import Files

MODULES = ("kronfluence_ekfac", "bergson_store", "bergson_ekfac", "dattri_methods", "speed_of_peers")


def main(arguments: list[str]) -> int:
    module, folder, options = arguments
    if module not in MODULES:
        raise SystemExit(f"{module} is not one of {', '.join(MODULES)}")
    torch.set_num_threads(1)
    peer = importlib.import_module(f"benchmarks.lds.peers.{module}")
    peer.main(Files.read(Path(folder)), json.loads(options))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
