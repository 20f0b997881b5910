"""How fast a validator that was away comes back, beside how fast the chain grows meanwhile.

python -m benchmarks.rejoin [--validators 4] [--blocks 300] [--rate 100] [--json]

Real daemons on loopback under load. One validator is killed, and started again when the chain is so many blocks further; from its
first answer on its height and another's are read ten times a second until it is in step. Exits with 1 where it catches up no
faster than the chain grows, or does not vote again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chain import BenchmarkFailed, Chain, NodeSeat, running_chain
from benchmarks.load import prepare, send_all
from node.client import ClientError
from node.devnet.processes import child_environment, spawn
from node.storage.guard import SafetyGuard

SENDERS = 400
LANES = 4
LOAD_PIECE_S = 2.0
BATCH_MAX = 50
FIRST_HEIGHT = 20
IN_STEP_BLOCKS = 2
"""So near to another node's height, which was asked first, it is in step."""

LOOK_S = 0.1
AWAY_S_MAX = 400.0
START_S_MAX = 90.0
CATCH_UP_S_MAX = 300.0
VOTE_S_MAX = 90.0


@dataclass(slots=True)
class Load:
    """Transfers at a rate until `stopped`, in pieces that are signed while the one before is sent."""

    chain: Chain
    urls: list[str]
    rate: int
    accepted: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Send."""
        nonces = {sender.address: 0 for sender in self.chain.senders}
        batch = max(1, min(BATCH_MAX, self.rate // 20))
        while not self.stopped.is_set():
            requests, _ = prepare(
                self.chain.id, self.chain.senders, nonces, LANES, batch, self.rate, LOAD_PIECE_S
            )
            self.accepted += len(send_all(self.urls, requests, time.monotonic()).accepted)


@contextmanager
def under_load(chain: Chain, entries: list[NodeSeat], rate: int) -> Iterator[Load]:
    """Load from a thread beside, through some daemons."""
    load = Load(chain, [seat.url for seat in entries], rate)
    thread = threading.Thread(target=load.run, daemon=True)
    thread.start()
    try:
        yield load
    finally:
        load.stopped.set()
        thread.join()


def height_of(chain: Chain, seat: NodeSeat) -> int:
    """A daemon's executed height; -1 while it does not answer."""
    try:
        return int(chain.client(seat).status()["height"])
    except ClientError:
        return -1


def wait(what: str, done: Callable[[], bool], seconds: float) -> float:
    """Return the seconds until `done`, which is asked again and again; raises BenchmarkFailed."""
    begin_s = time.monotonic()
    while not done():
        if time.monotonic() - begin_s > seconds:
            raise BenchmarkFailed(f"{what}: not within {seconds:g} s")
        # Heights and votes of other processes, one of them not up yet: there is no event to wait for.
        time.sleep(LOOK_S)
    return time.monotonic() - begin_s


def last_commit_vote(seat: NodeSeat) -> tuple[int, int]:
    """Epoch and round of what a validator commit-voted for last, by the witness that it keeps beside its database."""
    mark = SafetyGuard(seat.home.safety_guard_path).mark
    return mark.epoch, mark.rounds[4]


def restart(chain: Chain, seat: NodeSeat, settings: list[str]) -> None:
    """Start a killed daemon as `running_chain` did."""
    flags = [flag for setting in settings for flag in ("--set", setting)]
    command = [
        sys.executable,
        "-m",
        "node.cli.main",
        "start",
        "--home",
        str(seat.home.root),
        "--json",
        *flags,
    ]
    chain.children[seat.name] = spawn(
        seat.name, command, seat.home.logs_path / "node.log", child_environment()
    )


@dataclass(frozen=True, slots=True)
class Race:
    """The heights of the one that comes back and of another, from the first answer until both are in step."""

    seconds: float
    from_height: int
    to_height: int
    other_from_height: int
    other_to_height: int

    @property
    def caught_up_per_second(self) -> float:
        """Blocks that it executed a second."""
        return (self.to_height - self.from_height) / self.seconds

    @property
    def grown_per_second(self) -> float:
        """Blocks by which the chain grew a second meanwhile."""
        return (self.other_to_height - self.other_from_height) / self.seconds


def race(chain: Chain, back: NodeSeat, other: NodeSeat, look: Callable[[], object]) -> Race:
    """Watch both until they are in step, with a `look` at something else each time; raises BenchmarkFailed."""
    begin_s, other_from, back_from = time.monotonic(), height_of(chain, other), height_of(chain, back)
    seen = [(back_from, other_from)]

    def in_step() -> bool:
        look()
        ahead = height_of(chain, other)
        seen.append((height_of(chain, back), ahead))
        return seen[-1][0] >= ahead - IN_STEP_BLOCKS

    wait(f"{back.name} in step", in_step, CATCH_UP_S_MAX)
    return Race(time.monotonic() - begin_s, back_from, seen[-1][0], other_from, seen[-1][1])


def measure(
    root: Path, validators: int, blocks: int, rate: int, settings: list[str] | None = None
) -> dict[str, object]:
    """One run in a fresh folder; returns the figures. Raises BenchmarkFailed."""
    settings = settings or []
    with running_chain(root, validators, SENDERS, settings) as chain:
        other, *entries, away = chain.seats
        with under_load(chain, [other, *entries], rate) as load:
            wait("the first blocks", lambda: height_of(chain, away) >= FIRST_HEIGHT, AWAY_S_MAX)
            killed_height = height_of(chain, away)
            chain.kill(away)
            vote = last_commit_vote(away)
            away_s = wait(
                f"{blocks} blocks", lambda: height_of(chain, other) >= killed_height + blocks, AWAY_S_MAX
            )
            begin_s, voted_s = time.monotonic(), list[float]()

            def voted() -> bool:
                if not voted_s and last_commit_vote(away) > vote:
                    voted_s.append(time.monotonic() - begin_s)
                return bool(voted_s)

            restart(chain, away, settings)
            started_s = wait("its first answer", lambda: height_of(chain, away) >= 0, START_S_MAX)
            run = race(chain, away, other, voted)
            in_step_s = time.monotonic() - begin_s
            wait("its vote", voted, VOTE_S_MAX)
        return {
            "validators": validators,
            "rate_offered": rate,
            "away_blocks": run.other_from_height - killed_height,
            "away_seconds": round(away_s, 1),
            "started_s": round(started_s, 2),
            "catch_up_s": round(run.seconds, 2),
            "caught_up_blocks": run.to_height - run.from_height,
            "caught_up_blocks_per_second": round(run.caught_up_per_second, 1),
            "caught_up_blocks_per_second_with_start": round((run.to_height - killed_height) / in_step_s, 1),
            "grown_blocks_per_second": round(run.grown_per_second, 1),
            "grown_blocks_per_second_while_away": round(blocks / away_s, 1),
            "vote_again_s": round(voted_s[0], 2),
            "vote_again_after_answer_s": round(max(0.0, voted_s[0] - started_s), 2),
            "accepted_tx": load.accepted,
            "load_average": round(os.getloadavg()[0], 2),
        }


def faster_than_the_chain(figures: dict[str, object]) -> bool:
    """Whether it caught up faster than the chain grew, meanwhile and while it was away."""
    rate = float(str(figures["caught_up_blocks_per_second"]))
    return rate > max(
        float(str(figures["grown_blocks_per_second"])),
        float(str(figures["grown_blocks_per_second_while_away"])),
    )


def main() -> int:
    """Measure, print, and fail where the chain grows as fast as the validator catches up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--validators", type=int, default=4)
    parser.add_argument(
        "--blocks", type=int, default=300, help="by which the chain grows without the validator"
    )
    parser.add_argument("--rate", type=int, default=100, help="transactions offered a second")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="openledger-rejoin-") as folder:
        figures = measure(Path(folder), options.validators, options.blocks, options.rate, options.set)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:36} {value}")
    return 0 if faster_than_the_chain(figures) else 1


if __name__ == "__main__":
    sys.exit(main())
