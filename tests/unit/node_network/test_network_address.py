from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from node.network import (
    AddressInvalid,
    NetworkConfig,
    NetworkConfigInvalid,
    PeerAddress,
    peer_id_of_seed,
)

PEER = peer_id_of_seed(bytes([7]) * 32)


@pytest.mark.parametrize("number", range(5))
def test_peer_ids_are_those_libp2p_derives(number: int) -> None:
    seed = bytes([number]) * 32
    assert peer_id_of_seed(seed) == str(ID.from_pubkey(create_new_key_pair(seed=seed).public_key))


@pytest.mark.parametrize("host", ["/ip4/127.0.0.1", "/ip6/::1", "/dns4/node.example.org"])
def test_an_address_is_read_and_written_back(host: str) -> None:
    address = PeerAddress.parse(f"{host}/tcp/4001/p2p/{PEER}")
    assert str(address) == f"{host}/tcp/4001/p2p/{PEER}"
    assert (address.peer_id, address.port, address.host) == (PEER, 4001, host.split("/")[2])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/ip4/127.0.0.1/tcp/4001",
        f"/ip4/127.0.0.1/udp/4001/p2p/{PEER}",
        f"/ip4/127.0.0.1/tcp/0/p2p/{PEER}",
        f"/ip4/127.0.0.1/tcp/65536/p2p/{PEER}",
        f"/ip4/127.0.0.1/tcp/-1/p2p/{PEER}",
        f"/ip4/127.0.0.1/tcp/\u0664\u0660/p2p/{PEER}",
        f"/ip4/127.0.0.256/tcp/4001/p2p/{PEER}",
        f"/ip6/127.0.0.1/tcp/4001/p2p/{PEER}",
        f"/dns4/no spaces/tcp/4001/p2p/{PEER}",
        f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER[:-1]}",
        f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER[:-1]}0",
        "/ip4/127.0.0.1/tcp/4001/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        "/ip4/127.0.0.1/tcp/4001/p2p/" + "1" * 600,
    ],
)
def test_what_is_not_an_address_is_refused_with_a_typed_error(text: str) -> None:
    with pytest.raises(AddressInvalid):
        PeerAddress.parse(text)


def test_a_configuration_out_of_range_is_refused() -> None:
    peer = PeerAddress.of("127.0.0.1", 4001, PEER)
    good = NetworkConfig(key_seed=bytes(32), chain_id=bytes(32), mesh_peers=(peer,))
    with pytest.raises(NetworkConfigInvalid):
        NetworkConfig(key_seed=bytes(31), chain_id=bytes(32))
    with pytest.raises(NetworkConfigInvalid):
        NetworkConfig(key_seed=bytes(32), chain_id=b"")
    with pytest.raises(NetworkConfigInvalid):
        replace(good, listen_port=70_000)
    with pytest.raises(NetworkConfigInvalid):
        replace(good, topics=("a/b",))
    with pytest.raises(NetworkConfigInvalid):
        replace(good, gossip_peers=(peer,))
    with pytest.raises(NetworkConfigInvalid):
        replace(good, key_seed=bytes([7]) * 32)


def test_the_key_does_not_show_in_a_printed_configuration() -> None:
    config = NetworkConfig(key_seed=b"secret" * 5 + b"ok", chain_id=bytes(32))
    assert "secret" not in repr(config)


def test_the_package_is_light_to_import() -> None:
    code = "import sys, node.network; sys.exit('libp2p' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
