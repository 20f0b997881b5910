"""A daemon like any other that names batches in its blocks and keeps them to itself: it pushes none and answers for none."""

import sys

from node.cli.main import main
from node.network.network import Network
from node.sync import Sync
from node.wire import Frame, Request

_honest_broadcast = Network.broadcast
_honest_answer = Sync.answer


def _broadcast_no_batch(network: Network, kind: int, payload: bytes, *, bulk: bool = False) -> int:
    return 0 if kind == Frame.BATCH else _honest_broadcast(network, kind, payload, bulk=bulk)


async def _answer_no_batch(sync: Sync, peer_id: str, kind: int, payload: bytes) -> bytes:
    return b"" if kind == Request.BATCH else await _honest_answer(sync, peer_id, kind, payload)


if __name__ == "__main__":
    setattr(Network, "broadcast", _broadcast_no_batch)  # noqa: B010 - replacing a method is the misdeed
    setattr(Sync, "answer", _answer_no_batch)  # noqa: B010
    sys.exit(main())
