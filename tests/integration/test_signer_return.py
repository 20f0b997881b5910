"""However long a signer was away: its daemon finds it again within the time in which progress has to resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from node.signer.protocol import Status
from tests.chaos.__main__ import RECOVERY_S_MAX
from tests.unit.node_signer.desk import Desk, custodian, found, link_to

JUMP_S = 0.05
"""The clock of these tests jumps to the next deadline where nothing happens for so long."""


@pytest.mark.parametrize("away_s", [3.5, 53.0])
def test_a_daemon_whose_validator_may_be_needed_for_the_quorum_looks_for_its_signer_every_few_seconds(
    tmp_path: Path, away_s: float
) -> None:
    folder, path = found(tmp_path / "signer"), tmp_path / "run" / "signer.sock"
    waited_s: list[float] = []

    async def main() -> None:
        link, connected = link_to(path), trio.Event()

        def on_connected(_status: Status) -> None:
            connected.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run, on_connected)
            await trio.sleep(away_s)
            desk = Desk(custodian(folder), path)
            desk.open()  # no thread, so that the clock does not jump meanwhile
            begin = trio.current_time()
            await connected.wait()
            waited_s.append(trio.current_time() - begin)
            nursery.cancel_scope.cancel()
        link.close()
        await trio.to_thread.run_sync(desk.close)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=JUMP_S))
    assert waited_s[0] <= RECOVERY_S_MAX / 2
