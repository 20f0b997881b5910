"""The node's own driver, store and guard, killed at their writes: in real time, on LevelDB."""

import shutil
from collections.abc import Awaitable, Callable
from itertools import product
from pathlib import Path

import pytest
import trio

from node.storage.errors import SafetyRecordUnusable
from tests.simulation.deaths import Death, Manner
from tests.simulation.machines import Cluster, Machine, make_cluster
from tests.simulation.test_simulation import QUIET
from tests.simulation.world import World

pytestmark = pytest.mark.timeout(120)

WAIT_S = 60.0
WRITES_OF_A_LIFE = (1, 2, 3, 5, 8)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return make_cluster(tmp_path, World(QUIET))


def run(cluster: Cluster, story: Callable[[trio.Nursery], Awaitable[None]]) -> None:
    """Let all machines live while a story is told, then switch them off."""

    async def main() -> None:
        with trio.fail_after(WAIT_S):
            async with trio.open_nursery() as nursery:
                for machine in cluster.machines:
                    nursery.start_soon(machine.live)
                await story(nursery)
                for machine in cluster.machines:
                    machine.switch_off()

    trio.run(main)


async def until(true: Callable[[], bool]) -> None:
    """The machines change state in many places; looking again is simplest."""
    while not true():  # noqa: ASYNC110
        await trio.sleep(0.01)


def height(cluster: Cluster, machine: Machine) -> int:
    return cluster.checker.tips.get(machine.slot, (0, b""))[0]


async def grow(cluster: Cluster, blocks: int, *without: Machine) -> None:
    """Wait until every machine has all that anybody had committed until now, and some blocks more."""
    goal = cluster.checker.top() + blocks
    alive = [machine for machine in cluster.machines if machine not in without]
    await until(lambda: all(height(cluster, machine) >= goal for machine in alive))


def test_a_machine_that_dies_at_its_writes_in_every_manner_keeps_its_word(cluster: Cluster) -> None:
    victim = cluster.machines[0]
    victim.deaths.extend((write, Death(manner)) for manner, write in product(Manner, WRITES_OF_A_LIFE))
    ends = len(victim.deaths)

    async def story(nursery: trio.Nursery) -> None:
        await until(lambda: not victim.deaths)
        await grow(cluster, 3)

    run(cluster, story)
    assert victim.lives == ends + 1


def test_machines_that_all_lose_power_at_once_again_and_again_lose_nothing_committed(
    cluster: Cluster,
) -> None:
    victim = cluster.machines[1]
    manners = (Manner.TORN_WRITE, Manner.LOST_WRITE, Manner.SYNCED, Manner.SOME_SENT)
    victim.deaths.extend(
        (write, Death(manner, everywhere=True)) for manner, write in product(manners, (1, 2, 4, 7))
    )

    async def story(nursery: trio.Nursery) -> None:
        await until(lambda: not victim.deaths)
        await grow(cluster, 3)

    run(cluster, story)
    assert min(machine.lives for machine in cluster.machines) >= 16


# --- one key, two stories ---


async def switched_off(machine: Machine) -> None:
    machine.switch_off()
    await until(lambda: not machine.living)


async def live_for(machine: Machine, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await machine.live()


async def back_on(machine: Machine, nursery: trio.Nursery) -> None:
    machine.on = True
    nursery.start_soon(machine.live)


def test_a_machine_whose_whole_disk_is_an_old_copy_stops_before_it_contradicts_itself(
    cluster: Cluster,
) -> None:
    """Database and guard agree with each other, so only what others send can tell."""
    victim = cluster.machines[3]
    copy = cluster.folder / "copy"

    async def story(nursery: trio.Nursery) -> None:
        await grow(cluster, 2)
        await switched_off(victim)
        shutil.copytree(victim.folder, copy)
        await back_on(victim, nursery)
        await grow(cluster, 8)
        await switched_off(victim)
        shutil.rmtree(victim.folder)
        shutil.copytree(copy, victim.folder)
        await back_on(victim, nursery)
        await until(lambda: victim.stopped is not None)
        await grow(cluster, 3, victim)

    run(cluster, story)
    assert victim.stopped is not None
    assert victim.stopped.found.round > victim.stopped.found.known_round
    victim.on = True
    with pytest.raises(SafetyRecordUnusable, match="older than what this key signed last"):
        trio.run(live_for, victim, 3.0)


def test_of_two_machines_with_one_key_one_stops_and_the_chain_goes_on(cluster: Cluster) -> None:
    """Until then they may contradict each other: the checker holds neither to its word, but all to one chain."""
    first = cluster.machines[3]

    async def story(nursery: trio.Nursery) -> None:
        await grow(cluster, 2)
        await switched_off(first)
        second = Machine(cluster, 4, first.index, cluster.folder / "second")
        shutil.copytree(first.folder, second.folder)
        first.honest = second.honest = False
        await back_on(first, nursery)
        await back_on(second, nursery)
        await until(lambda: first.stopped is not None or second.stopped is not None)
        await grow(cluster, 3, first, second)

    run(cluster, story)
