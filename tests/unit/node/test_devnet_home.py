"""What a devnet makes of a directory: taken only when it is empty or ours, and made so that nodes can start."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from node.config import load_config
from node.devnet.errors import DevnetHomeBusy, DevnetHomeForeign
from node.devnet.layout import claim_home
from node.devnet.network import FULL_NODE, Network, ValidatorCountInvalid, create_network
from node.devnet.ports import PORT_HIGH, PORT_LOW, free_ports
from node.home import Home, lock_home, open_home
from node.keys import load_seed, public_key
from node.ledger.genesis import chain_id, genesis_from_dict
from node.network.address import PeerAddress, peer_id_of_seed


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    with claim_home(tmp_path_factory.mktemp("devnet") / "home") as layout:
        return create_network(layout, 4, ("alice", "bob", "carol"))


def test_a_new_directory_is_created_and_marked(tmp_path: Path) -> None:
    with claim_home(tmp_path / "a" / "b") as layout:
        assert layout.lock.is_file()
        assert {entry.name for entry in layout.root.iterdir()} == {"devnet.lock", "accounts", "nodes", "work"}


def test_a_directory_that_holds_something_else_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter one")
    with pytest.raises(DevnetHomeForeign) as refused, claim_home(tmp_path):
        pass
    assert refused.value.found == "thesis.txt"
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("no directory")
    with pytest.raises(DevnetHomeForeign), claim_home(tmp_path / "home"):
        pass


def test_a_previous_devnet_is_replaced_and_what_others_put_there_is_kept(tmp_path: Path) -> None:
    with claim_home(tmp_path / "home") as layout:
        (layout.nodes / "old").mkdir()
        (layout.root / "notes.txt").write_text("mine")
        layout.report_json.write_text("{}")
    with claim_home(tmp_path / "home") as layout:
        assert list(layout.nodes.iterdir()) == []
        assert not layout.report_json.exists()
        assert (layout.root / "notes.txt").read_text() == "mine"


def test_a_directory_in_which_a_supervisor_lives_is_refused_with_its_process_id(tmp_path: Path) -> None:
    import os

    with (
        claim_home(tmp_path / "home"),
        pytest.raises(DevnetHomeBusy) as refused,
        claim_home(tmp_path / "home"),
    ):
        pass
    assert refused.value.pid == os.getpid()


def test_a_directory_in_which_a_node_runs_alone_is_refused_and_kept(tmp_path: Path) -> None:
    with claim_home(tmp_path / "home") as layout:
        (layout.nodes / "validator-1").mkdir()
    with (
        lock_home(Home(layout.nodes / "validator-1")),
        pytest.raises(DevnetHomeBusy),
        claim_home(tmp_path / "home"),
    ):
        pass
    assert (layout.nodes / "validator-1").is_dir()


def test_every_home_opens_and_carries_the_same_genesis(network: Network) -> None:
    texts = set()
    for node in network.nodes:
        home = open_home(node.home.root)
        texts.add(home.genesis_path.read_bytes())
        config = load_config(home.config_path, environment={})
        assert config.node.validator == node.validator
        assert node.rpc_url == f"http://127.0.0.1:{config.rpc.port}"
        assert node.peer_id == peer_id_of_seed(load_seed(home.node_key_path))
        assert home.consensus_key_path.exists() == node.validator
    assert len(texts) == 1
    assert chain_id(genesis_from_dict(json.loads(texts.pop()))) == network.chain_id


def test_validators_mesh_with_validators_and_the_full_node_gossips_with_all(network: Network) -> None:
    validators = {node.peer_id for node in network.validators}
    assert [node.name for node in network.nodes if not node.validator] == [FULL_NODE]
    for node in network.nodes:
        section = load_config(node.home.config_path, environment={}).network
        mesh = {PeerAddress.parse(text).peer_id for text in section.mesh_peers}
        gossip = {PeerAddress.parse(text).peer_id for text in section.gossip_peers}
        assert mesh == (validators - {node.peer_id} if node.validator else set())
        assert gossip == ({network.full_node.peer_id} if node.validator else validators)


def test_accounts_are_funded_and_their_keys_are_readable_by_their_owner_only(network: Network) -> None:
    genesis = genesis_from_dict(json.loads(network.full_node.home.genesis_path.read_bytes()))
    balances = dict(genesis.accounts)
    assert [account.name for account in network.accounts] == [
        "alice",
        "bob",
        "carol",
        "trainer",
        "provider",
        "user",
    ]
    for account in network.accounts:
        assert account.address == public_key(load_seed(account.path))
        assert balances[account.address] > 0
        assert stat.S_IMODE(account.path.stat().st_mode) == 0o600


def test_keys_are_drawn_anew_for_every_network(network: Network, tmp_path: Path) -> None:
    with claim_home(tmp_path / "home") as layout:
        other = create_network(layout, 4, ("alice", "bob", "carol"))
    assert not {node.peer_id for node in network.nodes} & {node.peer_id for node in other.nodes}
    assert not {entry.address for entry in network.accounts} & {entry.address for entry in other.accounts}


@pytest.mark.parametrize("count", [0, 3, 17])
def test_a_number_of_validators_that_makes_no_devnet_is_refused(tmp_path: Path, count: int) -> None:
    with claim_home(tmp_path / "home") as layout, pytest.raises(ValidatorCountInvalid):
        create_network(layout, count, ("alice",))


def test_ports_are_distinct_and_below_those_that_connections_are_given() -> None:
    ports = free_ports(32)
    assert len(set(ports)) == 32
    assert all(PORT_LOW <= port < PORT_HIGH for port in ports)
