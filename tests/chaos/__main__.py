"""Chaos on real processes: `python -m tests.chaos --validators 4 --seconds 120 --seed 7`.

Daemons under load are killed, stopped, cut off, damaged and joined by a Byzantine one, while validators join, leave and move their
stakes, disks are lost and come back from snapshots, and a signer is killed and stopped, as a schedule drawn from the seed says;
exits 1 where two nodes differ, an acknowledged transfer is lost, somebody does not recover or vote again in time, or a daemon ends
otherwise than it should. `--planted NODE=MODULE` runs a daemon with a fault in an honest one's place, to show that a run can fail.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

from node.devnet.network import CANDIDATE_PREFIX, FULL_NODE, VALIDATOR_PREFIX
from tests.chaos.faults import Striker
from tests.chaos.fleet import Fleet, NotInTime, running_fleet
from tests.chaos.links import Links, lay_links
from tests.chaos.load import Load
from tests.chaos.members import PARAMS_CHANGING
from tests.chaos.returns import LAG_HEIGHTS
from tests.chaos.schedule import EPOCHS, SIGNERS, SNAPSHOTS, Fault, Kind, Roles, draw_schedule
from tests.chaos.signers import lay_signer
from tests.chaos.trial import PROBES, Recovery, Trial

PRUNING_DAEMON = "tests.chaos.pruning_daemon"
SENDERS = ("alice", "bob", "carol", "dave")
BATCH = 5
RECOVERY_S_MAX = 5.0
RETURN_S_MAX = 45.0
CANDIDATES = 3


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--validators", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long the faults take, about")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rate", type=float, default=20.0, metavar="TX_PER_S")
    parser.add_argument("--kinds", default="", metavar="NAME,...", help=f"of {', '.join(Kind.__members__)}")
    text = "seconds a recovery may take, not counting what a daemon waited for a CPU"
    parser.add_argument("--recovery-s-max", type=float, default=RECOVERY_S_MAX, help=text)
    text = "the same, where a node comes back from a snapshot; and how long until struck validators vote"
    parser.add_argument("--return-s-max", type=float, default=RETURN_S_MAX, help=text)
    parser.add_argument("--planted", action="append", default=[], metavar="NODE=MODULE")
    parser.add_argument("--home", type=Path, help="kept; without it a temporary one, kept if the run fails")
    return parser


async def run(options: argparse.Namespace) -> Trial:
    """Play the schedule; returns the trial with its findings."""
    laid: list[Links] = []
    schedule = make_schedule(options)
    archive = archive_of(schedule, options.validators)

    def prepare(fleet: Fleet, nursery: trio.Nursery) -> None:
        laid.append(lay_links(fleet))
        nursery.start_soon(laid[0].run)
        equip(fleet, schedule, archive)
        for text in options.planted:
            name, _, module = text.partition("=")
            fleet.seats[name].module = module

    accounts = (*SENDERS, *PROBES)
    come = sum(fault.kind is Kind.JOIN for fault in schedule)
    async with running_fleet(
        options.home, options.validators, accounts, prepare, candidates=come, params=PARAMS_CHANGING
    ) as fleet:
        for number, fault in enumerate(schedule, 1):
            print(f"  {number:3} {fault}", flush=True)
        return await play(options, fleet, laid[0], schedule, archive)


def equip(fleet: Fleet, schedule: Sequence[Fault], archive: str) -> None:
    """All nodes but one prune, and soon; candidates start from snapshots; one validator has a signer, where that is struck."""
    for name, seat in fleet.seats.items():
        if name == archive:
            seat.arguments += ("--set", "sync.snapshot=never")
            continue
        seat.module = seat.usual = PRUNING_DAEMON
        seat.arguments += ("--set", "storage.retain_heights=1")
        if seat.candidate:
            seat.arguments += ("--set", f"sync.lag_heights_max={LAG_HEIGHTS}")
    if any(fault.kind in (*SIGNERS, *SNAPSHOTS) for fault in schedule):
        signed = fleet.seats[fleet.validators[-1]]
        signed.signer = lay_signer(signed.plan)


def make_schedule(options: argparse.Namespace) -> tuple[Fault, ...]:
    kinds = [Kind[name] for name in options.kinds.split(",") if name] or list(Kind)
    validators = tuple(f"{VALIDATOR_PREFIX}{number}" for number in range(1, options.validators + 1))
    candidates = tuple(f"{CANDIDATE_PREFIX}{number}" for number in range(1, CANDIDATES + 1))
    roles = Roles(validators, FULL_NODE, candidates, validators[-1])
    return draw_schedule(options.seed, roles, int(options.seconds * 1000), kinds)


def archive_of(schedule: Sequence[Fault], validators: int) -> str:
    """The first validator that never lies; it is not the last one, whose disk may be lost."""
    hostile = {name for fault in schedule if fault.kind is Kind.BYZANTINE for name in fault.nodes}
    names = [f"{VALIDATOR_PREFIX}{number}" for number in range(1, validators)]
    return next(name for name in names if name not in hostile)


async def play(
    options: argparse.Namespace, fleet: Fleet, links: Links, schedule: Sequence[Fault], archive: str
) -> Trial:
    load = Load(fleet, options.seed)
    trial = Trial(fleet, load, Striker(fleet, links, load, options.seed), archive)
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        for name in SENDERS:
            nursery.start_soon(load.send, fleet.network.account(name), options.rate / len(SENDERS), BATCH)
        try:
            for fault in schedule:
                print(f"{trio.current_time() - begin:6.1f} s  {fault}", flush=True)
                await trial.strike(fault)
                if trial.findings or fleet.witness.violations:
                    break
        except NotInTime as error:
            trial.findings.append(str(error))
        nursery.cancel_scope.cancel()
    await trial.close_books()
    trial.findings += too_slow(trial.recoveries, options.recovery_s_max, options.return_s_max)
    return trial


def too_slow(recoveries: Sequence[Recovery], recovery_s_max: float, return_s_max: float) -> list[str]:
    """What took longer than it may: without what daemons waited for a CPU, but for votes."""
    found = [
        f"{row.recovered_s:.1f} s, {row.starved_s:.1f} s of it without a CPU, until all followed again after {row.fault}"
        for row in recoveries
        if row.own_s > (return_s_max if row.returned else recovery_s_max)
    ]
    return found + [
        f"{row.voted_s:.1f} s until the struck ones voted again after {row.fault}"
        for row in recoveries
        if row.voted_s is not None and row.voted_s > return_s_max + (row.fault.kind in EPOCHS) * return_s_max
    ]


def table(recoveries: Sequence[Recovery]) -> str:
    """Faults by kind: how many, and how long until progress beside them and after them; "own" is without waiting for a CPU."""
    lines = [
        f"{'fault':26} {'count':>5} {'beside p50':>11} {'max':>7} {'healed p50':>11} {'max':>7} {'start':>7} {'vote':>7}"
    ]
    for kind in dict.fromkeys(row.fault.kind for row in recoveries):
        rows = [row for row in recoveries if row.fault.kind is kind]
        lines.append(row_of(str(kind), rows))
    return "\n".join([*lines, row_of("all", recoveries)])


def row_of(name: str, rows: Sequence[Recovery]) -> str:
    beside = sorted(row.beside_s for row in rows if row.beside_s is not None)
    healed = sorted(row.recovered_s for row in rows)
    own = sorted(row.own_s for row in rows)
    started = max((row.started_s for row in rows), default=0.0)

    def shown(values: Sequence[float]) -> str:
        return f"{values[len(values) // 2]:9.2f} s {values[-1]:5.2f} s" if values else f"{'-':>11} {'-':>7}"

    voted = max((row.voted_s for row in rows if row.voted_s is not None), default=None)
    vote = f"{'-':>7}" if voted is None else f"{voted:5.2f} s"
    return f"{name:26} {len(rows):5} {shown(beside)} {shown(healed)} {shown(own)} {started:5.2f} s {vote}"


def changes(trial: Trial) -> str:
    """What became of the validator set, of lost disks, of signers, of blocks and votes."""
    members, returns = trial.striker.members, trial.striker.returns
    pruned = sorted(height for height in trial.kept_from.values() if height > 1)
    votes, of = (sum(pair[at] for pair in trial.certified) for at in (0, 1))
    return (
        f"{members.joined} joined, {members.left} left, {members.moved} stakes moved; {returns.returned} lost disks came back from "
        f"a snapshot, {returns.cut_short} fetches cut short by a kill of the node itself, {returns.bereft} by one of a source; "
        f"{trial.striker.signers_back} signers back without a start of their daemon; {len(pruned)} nodes keep blocks only from "
        f"height {', '.join(map(str, pruned))}; votes of those who were struck in {votes} of {of} certificates soon after; "
        f"{trial.penalties} penalties of honest nodes by honest nodes"
    )


def main(arguments: Sequence[str]) -> int:
    options = build_parser().parse_args(arguments)
    temporary = options.home is None
    options.home = options.home or Path(tempfile.mkdtemp(prefix="openledger-chaos-"))
    begin = time.monotonic()
    trial = trio.run(partial(run, options))
    witness = trial.fleet.witness
    print(table(trial.recoveries))
    print(
        f"{trial.fleet.height()} blocks, {len(witness.executed)} transfers acknowledged by some node and looked for on every disk; "
        f"{trial.load.accepted} accepted, {trial.load.refused} refused, {trial.load.silent} calls unanswered; "
        f"{sum(done.stopped_right for done in trial.struck)} daemons ended with their code and advice, "
        f"{sum(done.survived for done in trial.struck)} went on with a damaged log; {time.monotonic() - begin:.0f} s"
    )
    print(changes(trial))
    for finding in trial.findings:
        print(f"  FAILED: {finding}")
    print(f"seed {options.seed}: {'FAILED' if trial.findings else 'no violation'}")
    if temporary and not trial.findings:
        shutil.rmtree(options.home)
    elif trial.findings:
        print(f"homes and logs: {options.home}")
    return 1 if trial.findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
