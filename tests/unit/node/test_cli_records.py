"""The command line on records: erasing one's own, and contributions in the order in which an adapter has to name them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node.cli.main import main
from node.cli.output import Exit
from node.keys import account_path, store_seed
from node.ledger.bodies import BaseRegister, DatanetCreate
from node.ledger.erasure import erased_records
from tests.unit.node.ledger_backend import RunningServer, running_server
from tests.unit.node_ledger.world import BASE_HASH, World, seed


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "accounts").mkdir(mode=0o700)
    for name in ("ann", "owner"):
        store_seed(account_path(tmp_path / "accounts", name), seed(name))
    monkeypatch.setenv("OPENLEDGER_HOME", str(tmp_path))


def contributed(world: World) -> tuple[bytes, bytes]:
    datanet = world.accept("ann", DatanetCreate("docs", ("MIT",), ""))
    world.accept("owner", BaseRegister(BASE_HASH, "tiny"))
    world.hold(BASE_HASH, b"")
    return world.accept("ann", world.contribution(datanet, "ann")), world.accept(
        "ben", world.contribution(datanet, "ben")
    )


def run(server: RunningServer, *arguments: str) -> int:
    return main(["tx", *arguments, "--rpc", server.url, "--json", "--wait"])


def test_erase_takes_numbers_in_any_order_and_shows_the_ledgers_refusal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with running_server() as server:
        server.backend.execute_at_once = True
        first, second = server.do(contributed, server.backend.world)
        erase = ("erase", "--contribution", first.hex(), "--records", "1", "0", "1", "--key", "ann")
        assert run(server, *erase) == Exit.OK
        assert erased_records(server.backend.world.state, first) == (0, 1)
        capsys.readouterr()
        assert run(server, *erase) == Exit.REFUSED
        assert "already-erased" in capsys.readouterr().out
        others = ("erase", "--contribution", second.hex(), "--records", "0", "--key", "ann")
        assert run(server, *others) == Exit.REFUSED
        assert "not-the-contributor" in capsys.readouterr().out


def test_an_adapter_in_another_order_is_not_sent_and_the_right_one_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "adapter"
    file.write_bytes(b"file")
    with running_server() as server:
        server.backend.execute_at_once = True
        first, second = server.do(contributed, server.backend.world)
        publish = (
            "adapter-publish", "--name", "a", "--base-hash", BASE_HASH.hex(), "--recipe", "90", "--adapter-hash",
            "aa" * 32, "--index-root", "bb" * 32, "--file", str(file), "--key", "owner", "--contributions",
        )  # fmt: skip
        height = server.backend.world.height
        assert run(server, *publish, second.hex(), first.hex()) == Exit.USAGE
        error = json.loads(capsys.readouterr().out)["error"]
        assert f"{first.hex()} {second.hex()}" in error
        assert server.backend.world.height == height
        assert run(server, *publish, first.hex(), second.hex()) == Exit.OK
