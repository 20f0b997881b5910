"""A daemon like any other that calls a transaction executed which nobody ever sent, once."""

import sys
from collections.abc import Iterator

from node.cli.main import main
from node.rpc import events
from node.rpc.backend import BlockView

BOASTS_AT_HEIGHT = 3
_honest_events = events._events_of


def _boasting_events(block: BlockView) -> Iterator[events.FeedEvent]:
    rows = list(_honest_events(block))
    yield from rows
    if block.height == BOASTS_AT_HEIGHT:
        place = events.Position(block.height, len(rows))
        told = {"tx_hash": "ab" * 32, "height": block.height, "status": "ok"}
        yield events.FeedEvent(len(rows), "transaction", {}, events._encode("transaction", place, told))


if __name__ == "__main__":
    setattr(events, "_events_of", _boasting_events)  # noqa: B010 - the boast is the misdeed
    sys.exit(main())
