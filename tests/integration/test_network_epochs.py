"""Nodes that are in different epochs have different meshes: none takes the other's for an attack."""

from __future__ import annotations

import contextlib

from libp2p.host.exceptions import StreamFailure
from libp2p.network.stream.exceptions import StreamError

from node.network import peer_id_of_seed
from tests.unit.node_network.cluster import CHAIN, open_mesh, quick, run_trio
from tests.unit.node_network.villain import STRANGER, assert_serving, banned, end_of, hostile, points

STREAMS = 15
"""More than it takes for a ban."""


def test_a_validator_of_an_epoch_that_a_node_has_not_come_to_is_refused_and_not_banned() -> None:
    async def main() -> None:
        async with open_mesh(2) as (validators, _, _):
            behind, other = validators
            ahead = peer_id_of_seed(STRANGER)
            behind.network.admit([ahead])  # the ledger knows it, as it knows every candidate
            async with hostile(STRANGER, behind.address) as validator:
                await behind.until_connected(ahead)
                for _ in range(STREAMS):
                    with contextlib.suppress(StreamError, StreamFailure):  # the reset may be there first
                        await end_of(await validator.stream(f"/openledger/{CHAIN[:8].hex()}/direct/1"))
                await assert_serving([behind, other])
                assert points(behind, ahead) == 0
                assert not banned(behind, ahead)
                assert behind.connected_to(ahead)
            assert quick().ban_points < STREAMS * 10

    run_trio(main)
