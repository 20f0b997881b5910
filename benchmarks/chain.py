"""A chain of real daemons on loopback for measurements: homes, keys, a genesis with many funded senders, processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from consensus.beacon import BeaconChain
from node.client import Client, ClientError
from node.config import Config, MempoolSection, NetworkSection, NodeSection, RpcSection
from node.devnet.ports import free_ports
from node.devnet.processes import Child, child_environment, last_lines, spawn
from node.home import Home, create_home
from node.keys import load_seed, public_key, store_seed
from node.ledger.entries import ValidatorEntry
from node.ledger.genesis import chain_id, genesis_to_dict, make_genesis
from node.ledger.params import OPEN, Params
from node.network.address import PeerAddress, peer_id_of_seed
from node.startup import BEACON_REVEALS

HOST = "127.0.0.1"
CHAIN_NAME = "openledger-benchmark"
STAKE = 10_000 * OPEN
SENDER_BALANCE = 10_000 * OPEN
START_S_MAX = 90.0
STOP_S_MAX = 10.0
_POLL_S = 0.1
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class BenchmarkFailed(Exception):
    """The network did not come up, or not as asked."""


@dataclass(frozen=True, slots=True)
class Sender:
    """A funded account: address (32 bytes) and secret seed (32 bytes)."""

    address: bytes
    seed: bytes


@dataclass(frozen=True, slots=True)
class NodeSeat:
    """One validator: its name, home and URL."""

    name: str
    home: Home
    url: str


@dataclass(slots=True)
class Chain:
    """The running daemons, first to last."""

    id: bytes
    seats: tuple[NodeSeat, ...]
    senders: tuple[Sender, ...]
    children: dict[str, Child] = field(default_factory=dict)

    def client(self, seat: NodeSeat) -> Client:
        """A client of one daemon."""
        return Client(seat.url, timeout_s=10.0, retries=0)

    def kill(self, seat: NodeSeat) -> None:
        """End a daemon without warning."""
        child = self.children.pop(seat.name)
        os.killpg(child.pid, signal.SIGKILL)
        child.popen.wait()

    def alive(self) -> tuple[NodeSeat, ...]:
        """The daemons that were not killed."""
        return tuple(seat for seat in self.seats if seat.name in self.children)

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds (user and system, all threads) that each live daemon has used, its worker process apart."""
        return {name: process_cpu_s(child.pid) for name, child in self.children.items()}


def process_cpu_s(pid: int) -> float:
    """User and system seconds of one process with its threads, from ``/proc``; its children not counted."""
    text = Path(f"/proc/{pid}/stat").read_text()
    values = text.rpartition(")")[2].split()
    return (int(values[11]) + int(values[12])) / _TICKS_PER_S


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sender_of(index: int) -> Sender:
    """The account number `index`: test money, so the seed is derived from its number."""
    seed: bytes = blake3(b"openledger benchmark sender %d" % index).digest()
    return Sender(public_key(seed), seed)


@contextmanager
def running_chain(
    root: Path, validators: int, senders: int, settings: Sequence[str] = (), command: Sequence[str] = ()
) -> Iterator[Chain]:
    """Start `validators` daemons below `root` (a fresh folder) and wait until each has executed a block.

    `settings` are further ``SECTION.KEY=VALUE`` of all daemons; `command` runs instead of ``python -m node.cli.main``. Raises BenchmarkFailed.
    """
    chain = _make(root, validators, tuple(sender_of(index) for index in range(senders)))
    try:
        for seat in chain.seats:
            chain.children[seat.name] = _start(
                seat, settings, command or [sys.executable, "-m", "node.cli.main"]
            )
        for seat in chain.seats:
            _wait_for_height(chain, seat, 1)
        yield chain
    finally:
        _end(list(chain.children.values()))


def _end(children: list[Child]) -> None:
    """Ask the daemons to stop, and end with their worker processes those that do not."""
    for child in children:
        if child.popen.poll() is None:
            child.popen.send_signal(signal.SIGTERM)
    until_s = time.monotonic() + STOP_S_MAX
    while time.monotonic() < until_s and any(child.popen.poll() is None for child in children):
        time.sleep(_POLL_S)  # several processes' ends, by one deadline: `wait` would hang on the first
    for child in children:
        if child.popen.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.popen.wait()


def _make(root: Path, validators: int, senders: tuple[Sender, ...]) -> Chain:
    ports = free_ports(2 * validators)
    names = [f"validator-{number}" for number in range(1, validators + 1)]
    homes = [Home(root / name) for name in names]
    for home in homes:
        home.node_key_path.parent.mkdir(mode=0o700, parents=True)
        for path in (
            home.node_key_path,
            home.account_key_path,
            home.consensus_key_path,
            home.beacon_key_path,
        ):
            store_seed(path, os.urandom(32))
    peers = [peer_id_of_seed(load_seed(home.node_key_path)) for home in homes]
    addresses = [PeerAddress.of(HOST, ports[at], peer) for at, peer in enumerate(peers)]
    entries = tuple(
        ValidatorEntry(
            consensus_key=public_key(load_seed(home.consensus_key_path)),
            account=public_key(load_seed(home.account_key_path)),
            peer_id=peer,
            stake=STAKE,
            beacon_anchor=BeaconChain(load_seed(home.beacon_key_path), BEACON_REVEALS).anchor,
        )
        for home, peer in zip(homes, peers, strict=True)
    )
    balances = tuple((sender.address, SENDER_BALANCE) for sender in senders)
    genesis = make_genesis(CHAIN_NAME, int(time.time() * 1000), entries, balances, Params())
    text = json.dumps(genesis_to_dict(genesis)).encode() + b"\n"
    seats = []
    for at, (name, home) in enumerate(zip(names, homes, strict=True)):
        rpc_port = ports[validators + at]
        others = tuple(str(address) for address in addresses if address is not addresses[at])
        config = Config(
            node=NodeSection(moniker=name, validator=True),
            rpc=RpcSection(host=HOST, port=rpc_port),
            network=NetworkSection(listen_host=HOST, listen_port=ports[at], mesh_peers=others),
            mempool=MempoolSection(),
        )
        create_home(home.root, config, text)
        seats.append(NodeSeat(name, home, f"http://{HOST}:{rpc_port}"))
    return Chain(chain_id(genesis), tuple(seats), senders)


def _start(seat: NodeSeat, settings: Sequence[str], command: Sequence[str]) -> Child:
    flags = [flag for setting in settings for flag in ("--set", setting)]
    # A log line for every block is part of what a daemon costs; its colours are not.
    full = [*command, "start", "--home", str(seat.home.root), "--json", *flags]
    return spawn(seat.name, full, seat.home.logs_path / "node.log", child_environment())


def _wait_for_height(chain: Chain, seat: NodeSeat, height: int) -> None:
    until_s = time.monotonic() + START_S_MAX
    while time.monotonic() < until_s:
        child = chain.children[seat.name]
        if child.popen.poll() is not None:
            raise BenchmarkFailed(f"{seat.name} ended at its start:\n{last_lines(child.log)}")
        try:
            if chain.client(seat).status()["height"] >= height:
                return
        except ClientError:
            pass  # it does not listen yet, so it has no event to wait for
        time.sleep(_POLL_S)
    raise BenchmarkFailed(f"{seat.name} has executed no block after {START_S_MAX:g} s")
