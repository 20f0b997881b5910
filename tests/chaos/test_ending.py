"""A daemon that ends because one task failed ends with that reason alone, whatever its other tasks were about to start."""

from pathlib import Path

import pytest
import trio

from node.config import load_config
from node.devnet.layout import claim_home
from node.devnet.network import create_network
from node.node import Node
from node.storage.errors import DatabaseNotWritable

STEPS_AFTER_THE_END = 5
"""A task may take some more steps in a shielded scope, as a call of the RPC does that is being answered."""


def test_what_is_started_while_the_daemon_ends_is_dropped_and_the_reason_of_its_end_stays_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claim_home(tmp_path / "devnet") as layout:
        home = create_network(layout, 4, ["alice"]).validators[0].home
    node = Node(home, load_config(home.config_path, environment={}))
    reason = DatabaseNotWritable(home.data_path, "No space left on device")
    taken: list[bool] = []

    async def fail() -> None:
        raise reason

    async def answer_a_last_call() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                for _ in range(STEPS_AFTER_THE_END):
                    await trio.lowlevel.checkpoint()
            taken.append(node.tasks.start(trio.sleep_forever))

    monkeypatch.setattr(node.sync, "run", fail)
    monkeypatch.setattr(node.intake, "run_inbox", answer_a_last_call)
    try:
        with pytest.RaisesGroup(DatabaseNotWritable, flatten_subgroups=True) as raised:
            trio.run(node.run)
    finally:
        node.close()
    assert raised.value.exceptions
    assert taken == [False]
