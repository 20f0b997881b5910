"""The plan of a devnet: homes, keys, ports, genesis and accounts, all fresh.

Every key is drawn from the operating system's randomness and stored plain: whoever starts a devnet wants to look into it, and
its money is test money. Ports are chosen once and stand in each node's
configuration, so that a node started again by hand answers at the same URL.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from consensus.beacon import BeaconChain
from node.config import Config, NetworkSection, NodeSection, RpcSection
from node.devnet.errors import DevnetError
from node.devnet.layout import Layout
from node.devnet.ports import free_ports
from node.home import Home, create_home
from node.keys import account_path, generate_seed, load_seed, public_key, store_seed
from node.ledger.entries import ValidatorEntry
from node.ledger.genesis import Genesis, chain_id, genesis_to_dict, make_genesis
from node.ledger.params import OPEN, Params
from node.network.address import PeerAddress, peer_id_of_seed
from node.startup import BEACON_REVEALS

HOST = "127.0.0.1"
CHAIN_NAME = "openledger-devnet"
VALIDATORS_MIN = 4
VALIDATORS_MAX = 16
FULL_NODE = "full-node"
VALIDATOR_PREFIX = "validator-"
CANDIDATE_PREFIX = "candidate-"

STAKE = 10_000 * OPEN
BALANCES = {"trainer": 1_000 * OPEN, "provider": 2_000 * OPEN, "user": 1_000 * OPEN}
CONTRIBUTOR_BALANCE = 100 * OPEN

PARAMS = Params(
    # Windows close early once everybody was heard; these bound the wait for a validator that is gone. Four validators
    # that recompute a dozen calls on two cores need their time: whoever is late to commit loses its share.
    commit_window_heights=5,
    commit_window_ms=60_000,
    open_window_heights=5,
    open_window_ms=15_000,
    # A person, or a loaded machine, may have to answer a draw: a missed reveal costs the bond.
    reveal_window_heights=120,
    reveal_window_ms=120_000,
)


class ValidatorCountInvalid(DevnetError):
    """A number of validators that a devnet on one machine cannot have."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(f"expected {VALIDATORS_MIN} to {VALIDATORS_MAX} validators, got {count}")


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node: its name, home, RPC URL, libp2p id and account address (32 bytes)."""

    name: str
    home: Home
    rpc_url: str
    peer_id: str
    validator: bool
    address: bytes


@dataclass(frozen=True, slots=True)
class Account:
    """An account of the story and the file of its secret seed."""

    name: str
    address: bytes
    seed: bytes
    path: Path


@dataclass(frozen=True, slots=True)
class Network:
    """Everything that was made: validators first, then the full node."""

    chain_id: bytes
    nodes: tuple[NodePlan, ...]
    accounts: tuple[Account, ...]

    @property
    def validators(self) -> tuple[NodePlan, ...]:
        """The validating nodes."""
        return tuple(node for node in self.nodes if node.validator)

    @property
    def full_node(self) -> NodePlan:
        """The node that does not validate, where the story's transactions enter."""
        return next(node for node in self.nodes if not node.validator)

    def account(self, name: str) -> Account:
        """The account called ``name``; raises `KeyError`."""
        for account in self.accounts:
            if account.name == name:
                return account
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class _Seat:
    """A node before its home exists: what the others need to know of it."""

    name: str
    validator: bool
    home: Home
    rpc_port: int
    address: PeerAddress
    account: bytes

    @property
    def candidate(self) -> bool:
        """Whether it has a validator's keys but no seat in the genesis."""
        return self.name.startswith(CANDIDATE_PREFIX)


def create_network(
    layout: Layout,
    validators: int,
    contributors: Sequence[str],
    *,
    candidates: int = 0,
    params: Params = PARAMS,
) -> Network:
    """Make keys, homes, genesis and accounts for ``validators`` validators, one full node, and some more homes.

    Candidates have a validator's keys and the money for a stake, and are in nobody's configuration: they register, and
    wait for an epoch. Raises `ValidatorCountInvalid`, `node.devnet.errors.PortsExhausted`.
    """
    if not VALIDATORS_MIN <= validators <= VALIDATORS_MAX:
        raise ValidatorCountInvalid(validators)
    names = [*(f"{VALIDATOR_PREFIX}{number}" for number in range(1, validators + 1)), FULL_NODE]
    names += [f"{CANDIDATE_PREFIX}{number}" for number in range(1, candidates + 1)]
    ports = free_ports(2 * len(names))
    seats = [
        _seat(layout, name, ports[2 * position], ports[2 * position + 1])
        for position, name in enumerate(names)
    ]
    accounts = _accounts(layout, [*contributors, *BALANCES])
    genesis = _genesis(seats, accounts, params)
    text = json.dumps(genesis_to_dict(genesis), indent=2).encode() + b"\n"
    nodes = []
    for seat in seats:
        create_home(seat.home.root, _config(seat, seats), text)
        url = f"http://{HOST}:{seat.rpc_port}"
        nodes.append(NodePlan(seat.name, seat.home, url, seat.address.peer_id, seat.validator, seat.account))
    return Network(chain_id(genesis), tuple(nodes), tuple(accounts))


def _seat(layout: Layout, name: str, rpc_port: int, p2p_port: int) -> _Seat:
    """Draw a node's keys; `create_home` later keeps the key files that it finds."""
    home = Home(layout.nodes / name)
    home.node_key_path.parent.mkdir(mode=0o700, parents=True)
    validator = name.startswith(VALIDATOR_PREFIX)
    paths = [home.node_key_path, home.account_key_path]
    for path in paths if name == FULL_NODE else [*paths, home.consensus_key_path, home.beacon_key_path]:
        store_seed(path, generate_seed())
    peer_id = peer_id_of_seed(load_seed(home.node_key_path))
    account = public_key(load_seed(home.account_key_path))
    return _Seat(name, validator, home, rpc_port, PeerAddress.of(HOST, p2p_port, peer_id), account)


def _config(seat: _Seat, seats: Iterable[_Seat]) -> Config:
    """Validators meet one another over direct streams, and the full node over gossip; it meets all of them."""
    others = [other for other in seats if other.name != seat.name and not other.candidate]
    mesh = tuple(str(other.address) for other in others if other.validator and seat.validator)
    gossip = tuple(str(other.address) for other in others if not (other.validator and seat.validator))
    return Config(
        node=NodeSection(moniker=seat.name, validator=seat.validator or seat.candidate),
        rpc=RpcSection(host=HOST, port=seat.rpc_port),
        network=NetworkSection(
            listen_host=HOST, listen_port=seat.address.port, mesh_peers=mesh, gossip_peers=gossip
        ),
    )


def _genesis(seats: Sequence[_Seat], accounts: Iterable[Account], params: Params) -> Genesis:
    entries = tuple(
        ValidatorEntry(
            consensus_key=public_key(load_seed(seat.home.consensus_key_path)),
            account=seat.account,
            peer_id=seat.address.peer_id,
            stake=STAKE,
            beacon_anchor=BeaconChain(load_seed(seat.home.beacon_key_path), BEACON_REVEALS).anchor,
        )
        for seat in seats
        if seat.validator
    )
    balances = [(account.address, BALANCES.get(account.name, CONTRIBUTOR_BALANCE)) for account in accounts]
    balances += [(seat.account, 2 * STAKE) for seat in seats if seat.candidate]
    return make_genesis(CHAIN_NAME, int(time.time() * 1000), entries, tuple(balances), params)


def _accounts(layout: Layout, names: Iterable[str]) -> list[Account]:
    made = []
    for name in names:
        path, seed = account_path(layout.accounts, name), generate_seed()
        store_seed(path, seed)
        made.append(Account(name, public_key(seed), seed, path))
    return made
