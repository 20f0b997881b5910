"""What a validator's home says in its transactions: keys, peer id, anchor, proof of possession."""

from __future__ import annotations

import json
from pathlib import Path

from node.cli.output import UsageError
from node.home import Home
from node.keys import load_seed, public_key
from node.ledger.genesis import chain_id, genesis_from_dict
from node.ledger.stakes import sign_possession
from node.passphrase import Unlock, unlock_with

_GENESIS_BYTES_MAX = 64 << 20


def registration_fields(root: Path, passphrase_file: Path | None) -> dict[str, object]:
    """Fields of `ValidatorRegister` but the stake, for the account of this home on the chain of its genesis.

    Raises UsageError where the home is no validator's or has no genesis, and what `load_seed` raises.
    """
    from node.network.address import peer_id_of_seed

    home = Home(root.absolute())
    _require(root, home.genesis_path, home.consensus_key_path, home.beacon_key_path)
    chain, unlock = _chain_of(home), unlock_with(passphrase_file)
    consensus_seed = load_seed(home.consensus_key_path, unlock)
    account = public_key(load_seed(home.account_key_path, unlock))
    return {
        "consensus_key": public_key(consensus_seed),
        "possession": sign_possession(consensus_seed, chain, account),
        "peer_id": peer_id_of_seed(load_seed(home.node_key_path, unlock)),
        "beacon_anchor": _anchor(home, unlock),
    }


def anchor_field(root: Path, passphrase_file: Path | None) -> dict[str, object]:
    """The field of `ValidatorAnchor`: the end of the chain that this home's beacon key begins."""
    home = Home(root.absolute())
    _require(root, home.beacon_key_path)
    return {"beacon_anchor": _anchor(home, unlock_with(passphrase_file))}


def _anchor(home: Home, unlock: Unlock) -> bytes:
    from consensus.beacon import BeaconChain
    from node.startup import BEACON_REVEALS

    return BeaconChain(load_seed(home.beacon_key_path, unlock), BEACON_REVEALS).anchor


def _require(root: Path, *paths: Path) -> None:
    for path in paths:
        if not path.is_file():
            raise UsageError(f"--from-home {root}: no {path.name}; `openledger init --validator` makes one")


def _chain_of(home: Home) -> bytes:
    """The chain id of the home's genesis."""
    with home.genesis_path.open("rb") as file:
        data = file.read(_GENESIS_BYTES_MAX + 1)
    if len(data) > _GENESIS_BYTES_MAX:
        raise UsageError(f"{home.genesis_path}: over {_GENESIS_BYTES_MAX} bytes")
    try:
        return chain_id(genesis_from_dict(json.loads(data)))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{home.genesis_path}: not JSON ({error})") from error
