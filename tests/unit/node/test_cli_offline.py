"""rollback, inspect and debug dump: what they say and change, and what they never touch."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import trio

from node.cli.main import main
from node.config import load_config
from node.home import Home, create_home, lock_home
from node.ledger.genesis import genesis_to_dict
from node.stacks import STACKS_SIGNAL, render_stacks, stacks_path, write_stacks_on_signal
from tests.unit.node.rooms import Room, run, with_rooms
from tests.unit.node.snapshot_chain import EVERY, document, grow

HEIGHTS = 2 * EVERY + 2


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """The home of a validator that executed a chain with snapshots, and signed."""
    config = load_config(None, environment={}, overrides={"node.validator": True})
    made = create_home(tmp_path / "home", config, json.dumps(genesis_to_dict(document())).encode())
    there = Room("data", made.root, document=document())
    run(lambda: with_rooms([there], lambda: grow(there, HEIGHTS)))
    there.database.write({b"msafety": b"\xc1 damaged"}, sync=True)
    there.close()
    (made.root / "data" / "snapshots").rename(made.snapshots_path)
    return made


def call(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def inspect(capsys: pytest.CaptureFixture[str], home: Home, *more: str, code: int = 0) -> dict[str, Any]:
    return call(capsys, "inspect", "--home", str(home.root), *more, code=code)


def test_inspect_says_what_lies_in_a_home(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(capsys, home, "--deep")
    assert (found["height_executed"], found["height_committed"]) == (HEIGHTS, HEIGHTS)
    assert found["whole"]
    assert [row["height"] for row in found["snapshots"]] == [2 * EVERY, EVERY]
    kinds = {row["kind"]: row["rows"] for row in found["rows"]}
    assert kinds["outcomes"] == HEIGHTS
    assert found["rollback_lowest"] == 0
    assert "damaged" in found["safety"]["record"]
    assert main(["inspect", "--home", str(home.root)]) == 0  # and as a table


def test_inspect_finds_damage_and_says_so_with_its_code(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    chunk = home.snapshots_path / str(EVERY) / "1"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    assert inspect(capsys, home)["whole"]
    assert inspect(capsys, home, "--deep", code=1)["damage"] == [f"chunk 1 of snapshot {EVERY} is damaged"]
    there = Room("data", home.root, document=document())
    there.database.write({b"o" + (3).to_bytes(8, "big"): None, b"sa/nobody": b"money"}, sync=True)
    there.close()
    found = inspect(capsys, home, "--deep", code=1)["damage"]
    assert "the outcome of block 3 is missing" in found
    assert "the state does not add up to its digest" in found


def test_a_home_in_use_and_a_home_without_a_database_are_refused(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock_home(home):
        assert call(capsys, "inspect", "--home", str(home.root), code=1)["kind"] == "HomeLocked"
        assert call(capsys, "rollback", "--home", str(home.root), code=1)["kind"] == "HomeLocked"
    (home.data_path / "chain").rename(tmp_path / "away")
    assert "no database yet" in call(capsys, "inspect", "--home", str(home.root), code=1)["error"]


def test_rollback_takes_state_and_chain_back_and_never_the_safety_record(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    rollback = ("rollback", "--home", str(home.root))
    guard = home.safety_guard_path
    guard.write_bytes(b"the second note")
    planned = call(capsys, *rollback, "--to", "7", "--dry-run")
    assert (planned["height"], planned["done"]) == (7, False)
    assert inspect(capsys, home, code=0)["height_executed"] == HEIGHTS
    done = call(capsys, *rollback, "--to", "7")
    assert (done["height"], done["height_executed_before"], done["done"]) == (7, HEIGHTS, True)
    found = inspect(capsys, home, "--deep")
    assert (found["height_executed"], found["height_committed"], found["whole"]) == (7, 7, True)
    assert [row["height"] for row in found["snapshots"]] == [EVERY]
    assert call(capsys, *rollback)["height"] == 6
    assert "nothing to go back to" in call(capsys, *rollback, "--to", "8", code=1)["error"]
    assert guard.read_bytes() == b"the second note"
    there = Room("data", home.root, document=document())
    assert there.store.safety_record() == b"\xc1 damaged"
    # The chain grows again from there to the state that it had.
    run(lambda: with_rooms([there], lambda: grow(there, 3)))
    assert there.store.executed().height == 9
    there.close()


def test_rollback_ends_at_a_height_with_a_proof_and_not_below_what_is_remembered(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    there = Room("data", home.root, document=document())
    there.database.write({b"q" + (7).to_bytes(8, "big"): None}, sync=True)
    there.database.write({b"j" + (5).to_bytes(8, "big"): None}, sync=True)
    there.close()
    rollback = ("rollback", "--home", str(home.root))
    assert call(capsys, *rollback, "--to", "7", "--dry-run")["height"] == 6
    assert "taken back down to 5, not to 4" in call(capsys, *rollback, "--to", "4", code=1)["error"]
    assert call(capsys, *rollback, "--to", "-1", code=2)["exit_code"] == 2


def test_a_dump_of_a_node_at_rest_has_no_secret(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.config_path.write_text(
        home.config_path.read_text().replace('passphrase_file = ""', 'passphrase_file = "/secret/place"')
    )
    home.logs_path.mkdir(exist_ok=True)
    (home.logs_path / "node.log").write_bytes(b"x" * (3 << 20) + b"the end")
    out = tmp_path / "dump.tar.gz"
    found = call(capsys, "debug", "dump", "--home", str(home.root), "--out", str(out))
    assert {row["name"] for row in found["parts"]} >= {"config.toml", "inspect.json", "logs/node.log"}
    assert [row["name"] for row in found["missing"]] == ["stacks.txt"]
    with tarfile.open(out) as archive:
        files = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        texts = {name: file.read() for name, file in files.items() if file is not None}
    assert len(texts["debug/logs/node.log"]) == 1 << 20
    assert texts["debug/logs/node.log"].endswith(b"the end")
    whole = b"".join(texts.values())
    assert b"/secret/place" not in whole
    for key in (home.node_key_path, home.account_key_path, home.consensus_key_path, home.beacon_key_path):
        secret = key.read_bytes().strip()
        assert secret not in whole
        assert key.name.encode() not in texts["debug/files.json"]
    assert out.stat().st_mode & 0o077 == 0
    assert call(capsys, "debug", "dump", "--home", str(home.root), "--out", str(out), code=2)


def test_stacks_name_every_task_and_are_written_on_a_signal(home: Home) -> None:
    async def a_task_with_a_name() -> None:
        await trio.sleep_forever()

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a_task_with_a_name)
            nursery.start_soon(write_stacks_on_signal, home)
            await trio.testing.wait_all_tasks_blocked()
            assert "a_task_with_a_name" in render_stacks()
            os.kill(os.getpid(), STACKS_SIGNAL)
            with trio.fail_after(10):
                while not stacks_path(home).exists():  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert "a_task_with_a_name" in stacks_path(home).read_text()
            nursery.cancel_scope.cancel()

    trio.run(body)
