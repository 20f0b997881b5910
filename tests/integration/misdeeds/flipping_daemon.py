"""A daemon like any other, whose worker is the bit flipper."""

import sys

from node import node
from node.cli.main import main
from node.recompute.process import worker_command


def _flipping_command(device: str, backend: str, threads: int, processes: int) -> list[str]:
    command = worker_command(device, backend, threads, processes)
    command[command.index("node.recompute.worker")] = "tests.integration.misdeeds.score_bit_flipper"
    return command


if __name__ == "__main__":
    setattr(node, "worker_command", _flipping_command)  # noqa: B010 - the name node.node imported, not its own
    sys.exit(main())
