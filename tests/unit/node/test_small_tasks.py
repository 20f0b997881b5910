"""Small tasks: how many there may be, and when there may be none."""

import pytest
import trio
import trio.testing

from node import small_tasks
from node.small_tasks import SmallTasks


def test_past_the_bound_a_task_is_refused_until_another_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_tasks, "TASKS_MAX", 2)
    tasks, ended = SmallTasks(), [trio.Event() for _ in range(3)]

    async def main() -> None:
        async with tasks.opened():
            assert [tasks.start(event.wait) for event in ended] == [True, True, False]
            await trio.testing.wait_all_tasks_blocked()
            ended[0].set()
            await trio.testing.wait_all_tasks_blocked()
            assert tasks.start(ended[2].wait)
            ended[1].set()
            ended[2].set()

    trio.run(main)


def test_nothing_is_started_before_the_daemon_runs_nor_once_it_ends() -> None:
    tasks = SmallTasks()

    async def main() -> None:
        assert not tasks.start(trio.sleep, 0)
        async with tasks.opened():
            assert tasks.start(trio.sleep, 0)
        assert not tasks.start(trio.sleep, 0)

    trio.run(main)


def test_a_task_that_fails_ends_those_beside_it_and_says_why() -> None:
    tasks = SmallTasks()

    async def fail() -> None:
        raise OSError("the disk is gone")

    async def main() -> None:
        async with tasks.opened():
            tasks.start(fail)
            await trio.sleep_forever()

    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="the disk is gone"), flatten_subgroups=True):
        trio.run(main)
