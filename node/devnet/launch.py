"""Run a command that dies with its parent: ``python launch.py PARENT_PID COMMAND ...``.

Linux only delivers the parent's death to a process that asked for it, so this asks and then becomes the command,
keeping its process id. A supervisor killed with SIGKILL thus leaves no node behind. Started by path with ``-I -S``: it
needs nothing but the interpreter.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Ask for SIGKILL at the parent's death, then execute the command."""
    parent, command = int(argv[0]), argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
