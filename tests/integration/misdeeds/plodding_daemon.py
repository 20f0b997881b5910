"""A daemon like any other that takes no snapshot, however far it is behind: it executes every block."""

import sys

from node.cli.main import main
from node.snapshot.late import Latecomer


async def _never(_latecomer: Latecomer, _height: int, _gone: bool) -> None:
    return


if __name__ == "__main__":
    setattr(Latecomer, "consider", _never)  # noqa: B010 - replacing a method is the misdeed
    sys.exit(main())
