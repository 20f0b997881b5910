"""A daemon like any other whose RPC tells of another state than its ledger's, from a height on."""

import sys
from typing import Any

from node.cli.main import main
from node.rpc import views

LIES_FROM_HEIGHT = 3
_honest_block_event = views.block_event


def _lying_block_event(block: Any) -> Any:
    shown = _honest_block_event(block)
    if shown["height"] >= LIES_FROM_HEIGHT:
        shown["state_digest"] = shown["state_digest"][::-1]
    return shown


if __name__ == "__main__":
    setattr(views, "block_event", _lying_block_event)  # noqa: B010 - the lie is the misdeed
    sys.exit(main())
