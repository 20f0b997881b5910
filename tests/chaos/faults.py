"""What each fault does to real processes and their files, and how it is healed, as docs/security.md and the daemon's advice say."""

import os
import random
import resource
import shutil
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.chaos.fleet import Fleet, NotInTime, Seat
from tests.chaos.links import Links, Pair
from tests.chaos.load import Load
from tests.chaos.members import Members
from tests.chaos.returns import Returns
from tests.chaos.rpc import NodeSilent, ready
from tests.chaos.schedule import SIGNERS, SNAPSHOTS, Fault, Kind

MISDEEDS = "tests.integration.misdeeds"
HOSTILE = (f"{MISDEEDS}.equivocating_daemon", f"{MISDEEDS}.withholding_daemon")
WRONG_CLOCK = f"{MISDEEDS}.jumping_clock"
CLOCK_OFFSETS_MS = (60_000, -60_000)
"""Beyond the drift that validators tolerate, first ahead, then behind."""

DISK_ROOM_BYTES = 30_000
TAIL_BYTES_MAX = 200
GARBAGE_BYTES_MAX = 3000
LOG_BLOCK_BYTES = 32 * 1024
"""LevelDB's log is made of such blocks, each of records with a head of 7 bytes: checksum (4), length (2), type (1)."""

ADVICE = {
    Kind.DISK_FULL: ("is the disk full?", "Make room and start again"),
    Kind.LOST_TAIL: ("bring back the database as it was", "move it away and restart to sync again"),
    Kind.GARBAGE: (
        "move it away and restart to sync again",
        "bring back the database as it was",
        "restore the database as it was",
    ),
}
"""What a daemon that has to stop must say; one of them is enough but for the full disk, where all are needed."""


SIGNER_GONE = "signer does not answer"
"""What ``/ready`` says, among other words, of a validator that cannot vote for want of its signer."""

NOTICED_S_MAX = 15.0
READY_S_MAX = 30.0
LOOK_S = 0.2


@dataclass(slots=True)
class Inflicted:
    """A fault in force; `stopped_right` counts daemons that ended as they must, `survived` those that went on with the damage.

    `stake` is what a validator has when its stake has moved.
    """

    fault: Fault
    complaints: list[str]
    stopped_right: int = 0
    survived: int = 0
    stake: int = 0


class Striker:
    """Inflicts faults on a fleet and heals them; which byte is cut is drawn from the seed too."""

    def __init__(self, fleet: Fleet, links: Links, load: Load, seed: int) -> None:
        self._fleet = fleet
        self._links = links
        self._random = random.Random(f"strikes {seed}")
        self.members = Members(fleet, load)
        self.returns = Returns(fleet, links, self._random)
        self.signers_back = 0
        """How often a daemon voted again after its signer was struck, without a start of its own."""

    async def inflict(self, fault: Fault) -> Inflicted:
        """Break it; returns once it is broken."""
        fleet, nodes = self._fleet, fault.nodes
        done = Inflicted(fault, [])
        match fault.kind:
            case Kind.KILL | Kind.KILL_MANY:
                await fleet.kill(*nodes)
            case Kind.POWER_CUT:
                await fleet.kill(*nodes)
                self._signal_signers(nodes, signal.SIGKILL)
            case Kind.PAUSE:
                for name in nodes:
                    fleet.signal(name, signal.SIGSTOP)
            case Kind.SILENCE:
                self._links.silence(self._around(nodes, both=True))
            case Kind.ONE_WAY:
                self._links.silence(self._around(nodes, both=False))
            case Kind.RESET:
                self._links.sever(self._around(nodes, both=True))
            case Kind.HALVES:
                cut = self._random.choice((self._links.silence, self._links.sever))
                cut(self._between(nodes, set(fleet.seats) - set(nodes)))
            case Kind.DISK_FULL:
                await self._fill_disk(done, fleet.seats[nodes[0]])
            case Kind.TORN_TAIL | Kind.LOST_TAIL | Kind.GARBAGE:
                await fleet.kill(nodes[0])
                self._damage(fault.kind, fleet.seats[nodes[0]])
            case Kind.CLOCK:
                await self._restart_as(nodes[0], WRONG_CLOCK, CLOCK_OFFSETS_MS[0])
            case Kind.BYZANTINE:
                fleet.seats[nodes[0]].hostile = True
                await self._restart_as(nodes[0], self._random.choice(HOSTILE))
            case Kind.JOIN:
                await self.members.register(nodes[0])
                fleet.start(nodes[0])
                await fleet.kill(nodes[1])
            case Kind.LEAVE:
                await self.members.leave(nodes[0])
                await fleet.kill(nodes[1])
            case Kind.STAKE:
                done.stake = await self.members.move_stake(nodes[0])
                await fleet.kill(nodes[1])
            case Kind.LOST_DISK:
                await self.returns.lose_disk(nodes[0])
            case Kind.RECEIVING:
                await self.returns.lose_disk(nodes[0])
                await self.returns.kill_receiving(nodes[0])
            case Kind.SERVING:
                await self.returns.lose_disk(nodes[0])
                await self.returns.kill_serving(*nodes)
            case Kind.SIGNER_KILL:
                self._signal_signers(nodes, signal.SIGKILL)
            case Kind.SIGNER_PAUSE:
                self._signal_signers(nodes, signal.SIGSTOP)
        return done

    async def hold(self, fault: Fault) -> None:
        """Let it last."""
        if fault.kind is Kind.CLOCK:
            await trio.sleep(fault.lasting_ms / 2000)
            set_clock(self._fleet.seats[fault.nodes[0]], CLOCK_OFFSETS_MS[1])
            await trio.sleep(fault.lasting_ms / 2000)
        else:
            await trio.sleep(fault.lasting_ms / 1000)
        if fault.kind in SIGNERS:
            await self._until_ready_says(fault.nodes[0], SIGNER_GONE, True, NOTICED_S_MAX)

    async def heal(self, done: Inflicted) -> None:
        """Take the fault's cause away; processes that were ended are started, and recover by themselves from here on."""
        fleet, nodes = self._fleet, done.fault.nodes
        match done.fault.kind:
            case Kind.KILL | Kind.KILL_MANY | Kind.POWER_CUT | Kind.TORN_TAIL | Kind.DISK_FULL:
                self._start_signers(nodes)
                for name in nodes:
                    fleet.start(name)
            case Kind.PAUSE:
                for name in nodes:
                    fleet.signal(name, signal.SIGCONT)
            case Kind.SILENCE | Kind.ONE_WAY | Kind.RESET | Kind.HALVES:
                self._links.heal()
            case Kind.LOST_TAIL | Kind.GARBAGE:
                await self._start_damaged(done, fleet.seats[nodes[0]])
            case Kind.CLOCK:
                await fleet.kill(nodes[0])
                set_clock(fleet.seats[nodes[0]], 0)
                fleet.seats[nodes[0]].module = fleet.seats[nodes[0]].usual
                fleet.start(nodes[0])
            case Kind.BYZANTINE:
                pass  # it stays: what has to recover are the others
            case Kind.JOIN | Kind.LEAVE | Kind.STAKE:
                fleet.start(nodes[1])
            case Kind.LOST_DISK | Kind.RECEIVING:
                self._links.heal()
                self.returns.start(nodes[0])
            case Kind.SERVING:
                self._links.heal()
                fleet.start(nodes[1])
            case Kind.SIGNER_KILL:
                self._start_signers(nodes)
            case Kind.SIGNER_PAUSE:
                self._signal_signers(nodes, signal.SIGCONT)

    async def confirm(self, done: Inflicted) -> None:
        """Wait for what must have come of it once everybody follows; raises `NotInTime`."""
        first, kind = done.fault.nodes[0], done.fault.kind
        match kind:
            case Kind.JOIN | Kind.LEAVE:
                await self.members.until_member(first, kind is Kind.JOIN)
            case Kind.STAKE:
                await self.members.until_stake(first, done.stake)
            case Kind.SIGNER_KILL | Kind.SIGNER_PAUSE:
                await self._until_ready_says(first, SIGNER_GONE, False, READY_S_MAX)
                self.signers_back += 1
            case _ if kind in SNAPSHOTS:
                done.complaints += self.returns.complaints(first)

    # --- signers ---

    def _signal_signers(self, nodes: Iterable[str], number: signal.Signals) -> None:
        for name in nodes:
            if (signer := self._fleet.seats[name].signer) is not None:
                signer.send(number)

    def _start_signers(self, nodes: Iterable[str]) -> None:
        """Start those that do not run."""
        for name in nodes:
            signer = self._fleet.seats[name].signer
            if signer is not None and not signer.running:
                signer.start()

    async def _until_ready_says(self, name: str, text: str, present: bool, timeout_s: float) -> None:
        """Wait until ``/ready`` of a node does, or does not, contain a text; raises `NotInTime`."""
        said = ""
        with trio.move_on_after(timeout_s):
            while True:
                with suppress(NodeSilent):
                    said = await ready(self._fleet.url(name))
                    if (text in said) is present:
                        return
                await trio.sleep(LOOK_S)
        raise NotInTime(
            f"/ready of {name} says{'' if present else ' no more'} {text!r}, but {said!r}", timeout_s
        )

    # --- links ---

    def _around(self, nodes: tuple[str, ...], *, both: bool) -> set[Pair]:
        """From each struck node to every other, and back; or one of the two, drawn."""
        out = {(name, other) for name in nodes for other in self._fleet.seats if other != name}
        back = {(target, source) for source, target in out}
        if both:
            return out | back
        return out if self._random.random() < 0.5 else back

    def _between(self, some: Iterable[str], others: Iterable[str]) -> set[Pair]:
        ways = {(one, other) for one in some for other in others}
        return ways | {(target, source) for source, target in ways}

    # --- processes ---

    async def _restart_as(self, name: str, module: str, clock_offset_ms: int = 0) -> None:
        seat = self._fleet.seats[name]
        await self._fleet.kill(name)
        set_clock(seat, clock_offset_ms)
        seat.module = module
        self._fleet.start(name)
        await self._fleet.up(name)

    # --- disks ---

    async def _fill_disk(self, done: Inflicted, seat: Seat) -> None:
        """No file may grow past a limit; the limit ends with the process, which must end by itself."""
        name = seat.plan.name
        if seat.child is None:
            return
        size = max(path.stat().st_size for path in (seat.log, *logs(seat))) + DISK_ROOM_BYTES
        begin = seat.log.stat().st_size
        resource.prlimit(seat.child.pid, resource.RLIMIT_FSIZE, (size, size))
        try:
            code = await self._fleet.ended(name, 60)
        except NotInTime as error:
            done.complaints.append(f"{error}, although its disk is full")
            await self._fleet.kill(name)
            return
        said = seat.log.read_bytes()[begin:].decode("utf-8", "replace")
        if code != 1 or not all(text in said for text in ADVICE[Kind.DISK_FULL]):
            done.complaints.append(f"{name} on a full disk ended with {code}: {said[-400:]}")
        done.stopped_right += 1

    def _damage(self, kind: Kind, seat: Seat) -> None:
        """Damage the newest log. All of the database is saved: to open it may already change other files."""
        shutil.rmtree(saved_copy(seat), ignore_errors=True)
        shutil.copytree(seat.plan.home.data_path, saved_copy(seat))
        log = logs(seat)[-1]
        data = log.read_bytes()
        match kind:
            case Kind.TORN_TAIL:
                # The head of a record and a part of what it announces, all within one block.
                room = LOG_BLOCK_BYTES - len(data) % LOG_BLOCK_BYTES
                if room > 64:
                    head = self._random.randbytes(4) + (room - 7).to_bytes(2, "little") + b"\x01"
                    data += head + self._random.randbytes(self._random.randrange(room // 2))
            case Kind.LOST_TAIL:
                data = data[: max(0, len(data) - self._random.randint(1, TAIL_BYTES_MAX))]
            case _:
                junk = self._random.randbytes(self._random.randint(1, GARBAGE_BYTES_MAX))
                keep = len(data) - self._random.randint(0, min(len(data), GARBAGE_BYTES_MAX))
                data = data[:keep] + junk
        log.write_bytes(data)

    async def _start_damaged(self, done: Inflicted, seat: Seat) -> None:
        """It may recover, or end with advice, which is then followed: a full node syncs anew, a validator gets its own file back."""
        name, kind = seat.plan.name, done.fault.kind
        begin = seat.log.stat().st_size
        self._fleet.start(name)
        try:
            await self._fleet.up(name)
        except NotInTime:
            code = await self._fleet.ended(name)
            said = seat.log.read_bytes()[begin:].decode("utf-8", "replace")
            if code != 1 or not any(text in said for text in ADVICE[kind]) or "Traceback" in said:
                done.complaints.append(f"{name} with a damaged log ended with {code}: {said[-400:]}")
            done.stopped_right += 1
            shutil.rmtree(seat.plan.home.data_path)
            if seat.plan.validator:
                shutil.copytree(saved_copy(seat), seat.plan.home.data_path)
            self._fleet.start(name)
        else:
            done.survived += 1


def logs(seat: Seat) -> list[Path]:
    """The write-ahead logs of a seat's database."""
    return sorted((seat.plan.home.data_path / "chain").glob("*.log"))


def saved_copy(seat: Seat) -> Path:
    """Where the database of a seat is kept while it is damaged."""
    return seat.plan.home.root / "data-as-it-was"


def set_clock(seat: Seat, offset_ms: int) -> None:
    """Move the time of day of a daemon with a jumping clock."""
    path = seat.plan.home.root / "clock_offset_ms"
    draft = path.with_suffix(".new")
    draft.write_text(str(offset_ms))
    os.replace(draft, path)
