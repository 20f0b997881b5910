"""A message that changes nothing is not followed by a look at everything; nothing that is done depends on that."""

import pytest

from consensus import replica
from consensus.core import Core
from consensus.settled import Settled, still_settled
from tests.simulation.world import run_one

RUNS = (1, 2, 3, 5, 9)
"""Of seed 7: with epochs, losses, crashes, partitions, liars."""


def test_every_effect_of_every_step_is_what_it_is_when_all_is_looked_at_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    skipped: list[bool] = []

    def counted(core: Core, settled: Settled | None) -> bool:
        skipped.append(still_settled(core, settled))
        return skipped[-1]

    monkeypatch.setattr(replica, "still_settled", counted)
    quick = [run_one(7, run, traced=True)[2] for run in RUNS]
    monkeypatch.setattr(replica, "still_settled", lambda core, settled: False)
    thorough = [run_one(7, run, traced=True)[2] for run in RUNS]
    assert quick == thorough
    # Otherwise it would say nothing: most messages are votes that complete nothing.
    assert 2 * sum(skipped) > len(skipped)
