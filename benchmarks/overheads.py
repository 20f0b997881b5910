"""What a daemon pays beside its transactions: a frame, a request over HTTP, and a block's consensus.

python -m benchmarks.overheads [--frames 1500] [--requests 500] [--blocks 100] [--fanout all|collector] [--json]

All in one process, on loopback, CPU (user and system) of all its threads: a frame of 300 bytes from one network to another,
both ends together; ``POST /`` with one call that does nothing, the client in a process of its own; and blocks of four
validators, each with network, driver and database, whose batches are empty. Databases are on ``/dev/shm`` where there is
one, so that a sync costs no wait.
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

from consensus import crypto
from consensus.beacon import BeaconChain
from consensus.config import ConsensusConfig
from consensus.digest import digest
from consensus.effects import RequestPayload
from consensus.inputs import Executed, MessageReceived, PayloadAvailable, PayloadPending
from consensus.messages import decode_message
from consensus.replica import Replica
from consensus.types import Block, genesis_block
from consensus.validators import Validator, make_validator_set
from node.clock import now_ms
from node.config import RpcSection
from node.daemon import SWITCH_INTERVAL_S
from node.devnet.ports import free_ports
from node.driver import Driver, DriverPorts
from node.network import NetworkConfig, PeerAddress
from node.network.address import peer_id_of_seed
from node.network.network import Network
from node.rpc.server import serve_rpc
from node.storage.chain import ChainStore, ExecutedHead
from node.storage.database import Database
from node.storage.guard import SafetyGuard, first_mark
from node.wire import Frame

VALIDATORS = 4
FRAME_BYTES = 300
WARM_BLOCKS = 20
_CHAIN = digest("benchmark-chain", b"")
_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


async def _nothing(*_: object) -> bytes:
    return b""


def _networks(count: int) -> list[Network]:
    """Networks that dial each other on free ports."""
    seeds = [bytes([97 + number]) * 32 for number in range(count)]
    addresses = [
        PeerAddress.of("127.0.0.1", port, peer_id_of_seed(seed))
        for port, seed in zip(free_ports(count), seeds, strict=True)
    ]
    return [
        Network(
            NetworkConfig(
                key_seed=seed,
                chain_id=_CHAIN,
                listen_port=address.port,
                mesh_peers=tuple(other for other in addresses if other is not address),
            ),
            on_request=_nothing,
            validate_gossip=lambda topic, data: True,
        )
        for seed, address in zip(seeds, addresses, strict=True)
    ]


async def _connect(nursery: trio.Nursery, networks: Sequence[Network]) -> None:
    for network in networks:
        await nursery.start(network.run)
    await _until(lambda: all(peer.connected for network in networks for peer in network.peers()))
    await trio.sleep(0.5)


async def frame_us(count: int) -> float:
    """CPU microseconds of a frame that is sent alone, at both ends together."""
    spent_s = 0.0
    async with trio.open_nursery() as nursery:
        sender, receiver = networks = _networks(2)
        await _connect(nursery, networks)
        data = os.urandom(FRAME_BYTES)
        for number in range(count + 50):
            if number == 50:
                spent_s = time.process_time()
            sender.send(receiver.peer_id, 1, data)
            await receiver.frames.receive()
        spent_s = time.process_time() - spent_s
        nursery.cancel_scope.cancel()
    return 1e6 * spent_s / count


class _Backend:
    """Answers every call for the height with nothing behind it."""

    def __init__(self) -> None:
        from node.metrics import Metrics

        self.metrics = Metrics()

    async def submit_transactions(self, raws: Sequence[bytes]) -> list[bytes]:
        """Take them all."""
        return [bytes(32)] * len(raws)


def _ask(port: int, count: int, line: Any) -> None:
    calls = [{"jsonrpc": "2.0", "id": 1, "method": "tx_submit", "params": {"tx": "00"}}]
    body = json.dumps(calls).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for number in range(count + 50):
        if number == 50:
            line.send("warm")
            line.recv()
        connection.request("POST", "/", body, {"content-type": "application/json"})
        connection.getresponse().read()
    line.send("done")
    connection.close()


async def request_us(count: int) -> float:
    """CPU microseconds of the server for one request."""
    backend: Any = _Backend()
    ours, theirs = multiprocessing.Pipe()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve_rpc, backend, RpcSection(port=0), trio.Event())
        port = int(url.rpartition(":")[2])
        client = multiprocessing.get_context("spawn").Process(target=_ask, args=(port, count, theirs))
        client.start()
        await trio.to_thread.run_sync(ours.recv)
        spent_s = time.process_time()
        ours.send("go")
        await trio.to_thread.run_sync(ours.recv)
        spent_s = time.process_time() - spent_s
        await trio.to_thread.run_sync(client.join)
        nursery.cancel_scope.cancel()
    return 1e6 * spent_s / count


class _Chain:
    """Four validators that order empty batches as fast as they can."""

    def __init__(self, root: Path, config: ConsensusConfig) -> None:
        seeds = sorted(
            (digest("benchmark-key", bytes([number])) for number in range(VALIDATORS)), key=crypto.public_key
        )
        beacons = [BeaconChain(digest("benchmark-beacon", seed), 4096) for seed in seeds]
        self.keys = [crypto.public_key(seed) for seed in seeds]
        members = [Validator(key, 1, beacon.anchor) for key, beacon in zip(self.keys, beacons, strict=True)]
        validators = make_validator_set(0, members)
        genesis = genesis_block(_CHAIN, digest("benchmark-state", b""), timestamp_ms=now_ms() - 1000)
        self.networks = _networks(VALIDATORS)
        self.key_of = {network.peer_id: key for network, key in zip(self.networks, self.keys, strict=True)}
        self.peer_of = {key: peer for peer, key in self.key_of.items()}
        self.delivered = self._batches = 0
        self.drivers = [
            Driver(
                Replica(validators, genesis, config, seed=seed, beacon=beacon),
                _store(root / str(at), genesis),
                self._ports(at),
            )
            for at, (seed, beacon) in enumerate(zip(seeds, beacons, strict=True))
        ]

    def _ports(self, at: int) -> DriverPorts:
        def ignore(_: object) -> None:
            return None

        return DriverPorts(
            send=partial(self._send, self.networks[at]),
            deliver=partial(self._deliver, at),
            offer_payload=partial(self._offer, self.networks[at]),
            fetch_payload=ignore,
            fetch_block=ignore,
            behind=ignore,
            misbehaved=ignore,
            help_epoch=ignore,
        )

    def _send(self, network: Network, to: bytes | None, message: bytes) -> None:
        if to is None:
            network.broadcast(Frame.CONSENSUS, message)
        else:
            network.send(self.peer_of[to], Frame.CONSENSUS, message)

    def _offer(self, network: Network, _request: RequestPayload) -> tuple[bytes, ...]:
        self._batches += 1
        name = digest("benchmark-batch", self._batches.to_bytes(8, "big"))
        network.broadcast(Frame.BATCH, name)
        return (name,)

    def _deliver(self, at: int, blocks: tuple[Block, ...]) -> None:
        for block in blocks:
            self.delivered += 1
            state = digest("benchmark-state", block.id)
            self.drivers[at].tell(Executed(block.height, block.id, state, state, now_ms()))

    async def dispatch(self, at: int) -> None:
        """Hand one validator's frames to its driver, for ever."""
        driver = self.drivers[at]
        async for frame in self.networks[at].frames:
            if frame.kind == Frame.CONSENSUS:
                message = decode_message(frame.payload)
                driver.offer(MessageReceived(self.key_of[frame.peer_id], message, now_ms()))
            else:
                driver.tell(PayloadAvailable(frame.payload, now_ms()))


def _store(folder: Path, genesis: Block) -> ChainStore:
    folder.mkdir()
    store = ChainStore(Database(folder / "db"))
    store.create(_CHAIN, genesis, {}, ExecutedHead(0, genesis.id, b"", b"", b"", b""))
    guard = folder / "guard"
    guard.write_bytes(first_mark(_CHAIN, 0))
    store.guard = SafetyGuard(guard)
    return store


async def block_us(count: int, config: ConsensusConfig) -> float:
    """CPU microseconds of one block for each of the validators."""
    with tempfile.TemporaryDirectory(prefix="openledger-overheads-", dir=_MEMORY) as folder:
        chain = _Chain(Path(folder), config)
        async with trio.open_nursery() as nursery:
            await _connect(nursery, chain.networks)
            for at, driver in enumerate(chain.drivers):
                nursery.start_soon(chain.dispatch, at)
                nursery.start_soon(driver.run)
                driver.tell(PayloadPending(True, now_ms()))
            await _until(lambda: chain.delivered >= WARM_BLOCKS * VALIDATORS)
            first, spent_s = chain.delivered, time.process_time()
            await _until(lambda: chain.delivered >= first + count * VALIDATORS)
            spent_s, blocks = time.process_time() - spent_s, chain.delivered - first
            nursery.cancel_scope.cancel()
    return 1e6 * spent_s / blocks


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  an event for each block would be part of what is measured
        await trio.sleep(0.02)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=1500)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--fanout", choices=("all", "collector"), default="all")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    config = ConsensusConfig(vote_fanout=options.fanout)
    figures = {
        "frame_us": round(trio.run(frame_us, options.frames)),
        "request_us": round(trio.run(request_us, options.requests)),
        "block_us_per_node": round(trio.run(block_us, options.blocks, config)),
        "load_average": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(figures) if options.json else "\n".join(f"{k:20} {v}" for k, v in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
