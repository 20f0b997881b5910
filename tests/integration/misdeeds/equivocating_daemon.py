"""A daemon like any other that says one thing to half of its peers and another to the rest: blocks, votes and timeouts.

What it signs twice it signs with its own key, past its safety rules; and it takes no offence at its own contradictions.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from consensus import custody
from consensus.crypto import public_key, sign
from consensus.messages import (
    Message,
    ProposalMessage,
    TimeoutMessage,
    VoteMessage,
    decode_message,
    encode_message,
)
from consensus.types import QC, Block, header_id
from consensus.verify import proposal_message, timeout_message, vote_message
from node.cli.main import main
from node.driver import DriverPorts
from node.node import Node
from node.wire import Frame

_honest_ports = Node._ports
_earlier_qcs: list[QC] = []
Send = Callable[[bytes | None, bytes], None]
EARLIER_QCS = 8


def _other_story(node: Node, message: Message) -> Message | None:
    """The contradiction of an own message, or None where it tells no other story."""
    seed = node.identity.consensus_seed
    if seed is None:
        return None
    match message:
        case ProposalMessage(block, high_cc) if block.header.proposer == public_key(seed):
            header = replace(block.header, timestamp_ms=block.header.timestamp_ms + 1)
            signed = proposal_message(node.chain_id, header.epoch, header.round, header_id(header))
            return ProposalMessage(Block(header, block.qc, block.tc, sign(seed, signed)), high_cc)
        case VoteMessage(vote):
            other = os.urandom(32)
            signed = vote_message(
                node.chain_id, vote.epoch, vote.round, other, vote.parent_id, vote.parent_round
            )
            return VoteMessage(replace(vote, block_id=other, signature=sign(seed, signed)))
        case TimeoutMessage(timeout, high_qc, last_tc, high_cc):
            older = next((qc for qc in _earlier_qcs if 0 < qc.round < high_qc.round), None)
            _earlier_qcs[:] = [*_earlier_qcs, high_qc][-EARLIER_QCS:]
            if older is None:
                return None
            signed = timeout_message(node.chain_id, timeout.epoch, timeout.round, older.round)
            lie = replace(timeout, high_qc_round=older.round, signature=sign(seed, signed))
            return TimeoutMessage(lie, older, last_tc, high_cc)
    return None


def _ports_of_two_stories(node: Node) -> DriverPorts:
    honest = _honest_ports(node)
    return replace(honest, send=partial(_send_two_stories, node, honest.send))


def _send_two_stories(node: Node, honest_send: Send, to: bytes | None, message: bytes) -> None:
    other = _other_story(node, decode_message(message)) if to is None else None
    if other is None:
        honest_send(to, message)
        return
    peers = sorted(set(node.directory.peer_of.values()) - {node.network.peer_id})
    for position, peer_id in enumerate(peers):
        told = encode_message(other) if position % 2 else message
        node.network.send(peer_id, Frame.CONSENSUS, told)


if __name__ == "__main__":
    setattr(Node, "_ports", _ports_of_two_stories)  # noqa: B010 - replacing a method is the misdeed
    setattr(custody, "_record", lambda _core: None)  # noqa: B010 - it would end at the sight of itself
    sys.exit(main())
