"""One chaos run: load, faults in their order, and after each the measure of how soon everybody follows again; then the books."""

import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import trio

from node.devnet.processes import last_lines
from node.epochs import first_row
from node.ledger.entries import ValidatorSet
from node.ledger.state import get_account
from node.startup import load_genesis, open_chain
from node.storage.chain import ChainStore
from node.storage.database import Database
from node.storage.errors import StorageError
from tests.chaos.ballots import read_ballots
from tests.chaos.census import starved_s
from tests.chaos.faults import Inflicted, Striker
from tests.chaos.fleet import Fleet, NotInTime
from tests.chaos.load import Load
from tests.chaos.members import CHANGE_S_MAX
from tests.chaos.returns import has_returned
from tests.chaos.schedule import BEYOND_F, Fault, Kind

PROBES = tuple(f"probe-{number:02}" for number in range(40))
"""Accounts of one transfer at a time, so that what a probe waits for is the network and not an earlier transfer."""

RECOVERY_S_MAX = 90.0
"""Given up after; how long a recovery may take is the caller's to say."""

CLOSING_S_MAX = 5.0
"""A run that has failed already waits only so long for its nodes to reach one height."""

STOP_S_MAX = 10.0
CERTIFICATES_LOOKED_AT = 60
"""Of four equal stakes any three make a certificate: a slow one may be missing in some, but not in so many."""

LINE_CHARS_MAX = 400


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a fault went, in seconds.

    Attributes:
        fault: what it was.
        beside_s: until the untouched nodes executed a transfer that was sent after the strike; None where none was due.
        started_s: what the struck daemons took to start until they answered, 0 where none was started.
        recovered_s: from then, or from healing, until every honest node executed a transfer that was sent after that.
        starved_s: how long, of that time, even the honest daemon that the machine starved least was ready to run and had no CPU.
        voted_s: from then, too, until every struck validator had commit-voted; None where no validator was struck.
        struck_height: the highest of any node before it.
        returned: whether a node came back from a snapshot meanwhile, as it does who has lost more than a while.
        height: the highest of any node when the struck ones had voted.
    """

    fault: Fault
    beside_s: float | None
    started_s: float
    recovered_s: float
    starved_s: float
    voted_s: float | None
    struck_height: int
    returned: bool
    height: int

    @property
    def own_s(self) -> float:
        """The recovery without the machine's part in it: what is left is the protocol's."""
        return self.recovered_s - self.starved_s


@dataclass(slots=True)
class Trial:
    """A run in progress, and its findings.

    `archive` is the node that keeps all blocks and never loses its disk. Known at the end: `kept_from`, the lowest height that
    each node still has, `penalties`, how often honest nodes held something against one another, and `certified`, in how many certificates, and of how many, each struck validator's vote was soon after it was back.
    """

    fleet: Fleet
    load: Load
    striker: Striker
    archive: str
    kept_from: dict[str, int] = field(default_factory=dict)
    certified: list[tuple[int, int]] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    struck: list[Inflicted] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    penalties: int = 0
    _probes: int = 0

    async def strike(self, fault: Fault) -> None:
        """Inflict, hold and heal one fault; returns once everybody follows, or it is a finding."""
        fleet = self.fleet
        logs = {name: seat.log.stat().st_size for name, seat in fleet.seats.items() if seat.log.exists()}
        struck_height = fleet.height()
        beside: list[float] = []
        done = await self.striker.inflict(fault)
        self.struck.append(done)
        async with trio.open_nursery() as nursery:
            if fault.kind not in BEYOND_F:
                apart = set(fault.nodes)
                nursery.start_soon(self._beside, [name for name in fleet.live if name not in apart], beside)
            try:
                await self.striker.hold(fault)
            except NotInTime as error:
                done.complaints.append(str(error))
        votes = {name: fleet.seats[name].last_commit_vote() for name in self._voters(fault)}
        begin = trio.current_time()
        await self.striker.heal(done)
        try:
            for name in fault.nodes:
                await fleet.up(name)
            started_s = trio.current_time() - begin
            before = {name: starved_s(fleet.seats[name]) for name in fleet.live}
            voted: list[float] = []
            async with trio.open_nursery() as nursery:
                # A candidate may have to wait for its epoch: that is not its return.
                nursery.start_soon(self._until_voted, votes, voted)
                recovered_s = await self._probe(fleet.live)
                starved = min(starved_s(fleet.seats[name]) - before[name] for name in before)
                await self.striker.confirm(done)
            voted_s = max(voted, default=None)
            returned = any(has_returned(fleet.seats[name], logs.get(name, 0)) for name in fleet.live)
            taken = (started_s, recovered_s, starved, voted_s, struck_height, returned, fleet.height())
            self.recoveries.append(Recovery(fault, beside[0] if beside else None, *taken))
        except* NotInTime as errors:
            heights = ", ".join(f"{name} {height}" for name, height in fleet.witness.heights.items())
            texts = "; ".join(str(error) for error in leaves(errors))
            self.findings.append(f"no recovery from {fault}: {texts} ({heights})")
        self.findings += [f"{fault}: {text}" for text in done.complaints]
        self._look_for_the_dead()

    def _voters(self, fault: Fault) -> list[str]:
        """The struck ones that have to vote again; who leaves does not, nor who lies."""
        seats = self.fleet.seats
        leaver = fault.nodes[0] if fault.kind is Kind.LEAVE else ""
        able = [name for name in fault.nodes if seats[name].plan.validator or seats[name].candidate]
        return [name for name in able if name != leaver and not seats[name].hostile]

    async def _until_voted(self, before: dict[str, tuple[int, int]], took_s: list[float]) -> None:
        """Wait until all of these have signed a commit vote after the one given, and append the seconds; raises `NotInTime`."""
        seats = self.fleet.seats

        def voted() -> bool:
            now = {name: seats[name].last_commit_vote() for name in before}
            return all(vote > before[name] and vote[1] > 0 for name, vote in now.items())

        if before:
            took_s.append(
                await self.fleet.until(f"a vote of {', '.join(before)}", voted, CHANGE_S_MAX + RECOVERY_S_MAX)
            )

    async def _beside(self, names: list[str], took_s: list[float]) -> None:
        try:
            took_s.append(await self._probe(names))
        except NotInTime as error:
            self.findings.append(f"no progress beside a fault that the others bear: {error}")

    async def _probe(self, names: list[str]) -> float:
        """Send a transfer until all of `names` executed it; returns the seconds, raises `NotInTime`."""
        account = self.fleet.network.account(PROBES[self._probes % len(PROBES)])
        self._probes += 1
        executed: set[str] = set()
        hashes: set[str] = set()

        def listen(node: str, members: dict[str, object]) -> None:
            if members["tx_hash"] in hashes and members["status"] == "ok":
                executed.add(node)

        self.fleet.listeners.append(listen)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.load.insist, account, names, hashes)
                took_s = await self.fleet.until(
                    "a new transfer on every honest node",
                    lambda: all(name in executed or self._is_past(name, hashes) for name in names),
                    RECOVERY_S_MAX,
                )
                nursery.cancel_scope.cancel()
            return took_s
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self.fleet.listeners.remove(listen)

    def _is_past(self, name: str, hashes: set[str]) -> bool:
        """Whether a node tells of a later block than that of the transfer, as one does that came back from a snapshot."""
        witness = self.fleet.witness
        places = [witness.executed[tx_hash] for tx_hash in hashes if tx_hash in witness.executed]
        return any(place.height < witness.heights.get(name, 0) for place in places)

    def _look_for_the_dead(self) -> None:
        for name, seat in self.fleet.seats.items():
            if seat.started.is_set() and not seat.running and not seat.hostile:
                self.findings.append(f"{name} ended although nothing made it end:\n{last_lines(seat.log)}")
            if seat.signer is not None and not seat.signer.running:
                self.findings.append(f"{seat.signer.name} ended unasked:\n{last_lines(seat.signer.log)}")

    # --- the end ---

    async def close_books(self) -> None:
        """After the load: everybody reaches one height, stops when told, and its disk holds what was said."""
        fleet = self.fleet
        goal = fleet.height() + 2

        def last_paid() -> int:
            """What was under way when the load ended is executed after that, and must come to everybody as well."""
            return max((place.height for place in fleet.witness.executed.values()), default=0)

        try:
            await fleet.until(
                f"height {goal} on every honest node",
                lambda: all(
                    fleet.witness.heights.get(name, 0) >= max(goal, last_paid()) for name in fleet.live
                ),
                CLOSING_S_MAX if self.findings else RECOVERY_S_MAX,
            )
        except NotInTime as error:
            self.findings.append(f"{error}: {fleet.witness.heights}")
        honest = fleet.live
        for name in honest:
            fleet.signal(name, signal.SIGTERM)
        for name in honest:
            try:
                code = await fleet.ended(name, STOP_S_MAX)
            except NotInTime as error:
                self.findings.append(str(error))
                await fleet.kill(name)
            else:
                if code != 0:
                    self.findings.append(f"{name} ended with {code} when told to stop")
        for name in honest:
            self._read_database(name)
        self._read_logs()
        self.findings += [f"SAFETY: {text}" for text in fleet.witness.violations]

    def _read_database(self, name: str) -> None:
        """The books on disk, read without the daemon: every height, every acknowledged transfer, the receiver's balance."""
        fleet = self.fleet
        witness = fleet.witness
        try:
            database = Database(fleet.seats[name].plan.home.data_path / "chain")
        except StorageError as error:
            self.findings.append(f"{name}'s database after a proper stop: {error}")
            return
        try:
            store = ChainStore(database)
            kept_from = store.pruned_below()
            self.kept_from[name] = kept_from
            for height in range(kept_from, store.executed().height + 1):
                block_id, outcome = store.committed_id(height), store.outcome(height)
                if block_id is None or outcome is None:
                    self.findings.append(f"SAFETY: {name}'s database lacks height {height}")
                    continue
                witness.block(f"{name}'s disk", height, block_id.hex(), outcome.state_digest.hex())
            places = {tx: store.transaction_place(bytes.fromhex(tx)) for tx in witness.executed}
            found = {tx: place[0] for tx, place in places.items() if place is not None}
            # Of the block of a snapshot's state the outcome is here, its transactions are not.
            # Who was told to stop may not have come to the last blocks; what it has told of itself it must have.
            kept_to = max(store.executed().height, witness.heights.get(name, 0))
            witness.final(f"{name}'s disk", found, kept_from + (kept_from > 1), kept_to)
            paid = sum(
                place.status == "ok" and place.height <= kept_to
                for tx, place in witness.executed.items()
                if tx in self.load.payments
            )
            balance = get_account(store, self.load.receiver).balance
            if balance < paid:
                self.findings.append(
                    f"SAFETY: {paid} transfers were acknowledged, {name}'s ledger has {balance}"
                )
            if name == self.archive:
                self._count_votes(name, store)
        finally:
            database.close()

    def _count_votes(self, archive: str, store: ChainStore) -> None:
        """Whoever was struck and voted again must be in certificates after that, by what a disk with all blocks holds."""
        document = load_genesis(self.fleet.seats[archive].plan.home)
        genesis = open_chain(store, document)
        ballots = read_ballots(store, first_row(genesis, ValidatorSet(document.validators)))
        last = store.executed().height
        for place, row in enumerate(self.recoveries):
            for name in self._voters(row.fault):
                again = [
                    later.struck_height for later in self.recoveries[place + 1 :] if name in later.fault.nodes
                ]
                end = min([last, row.height + CERTIFICATES_LOOKED_AT, *again])
                after = ballots.count(self.fleet.seats[name].consensus_key(), row.height, end)
                self.certified.append((after, end - row.height))
                if not after and end == row.height + CERTIFICATES_LOOKED_AT:
                    self.findings.append(
                        f"{name} is in none of {end - row.height} certificates after {row.fault}"
                    )

    def _read_logs(self) -> None:
        """No traceback; nobody honest accused; nobody diverged."""
        seats = [seat for seat in self.fleet.seats.values() if seat.log.exists() and not seat.hostile]
        honest = {seat.consensus_key().hex() for seat in seats if seat.plan.validator or seat.candidate}
        peers = {seat.plan.peer_id for seat in seats}
        for seat in seats:
            if seat.signer is not None:
                lines = seat.signer.log.read_text(errors="replace").splitlines()
                self.findings += [f"in the log of {seat.signer.name}: {x}" for x in suspicious(lines, honest)]
            lines = seat.log.read_text(errors="replace").splitlines()
            self.penalties += penalties(lines, peers)
            found = suspicious(lines, honest, peers)
            self.findings += [f"in the log of {seat.plan.name}: {line}" for line in found]


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The exceptions in a group, however deep."""
    return [
        leaf
        for error in group.exceptions
        for leaf in (leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]


def suspicious(lines: Sequence[str], honest: Collection[str], peers: Collection[str] = ()) -> list[str]:
    """Lines of a log that must not be: tracebacks, a state that differs, an accusation of one of the `honest` keys (hex).

    Nor may one of the honest `peers` be banned; what was held against one is counted by `penalties`.
    """
    return [
        line.strip()[:LINE_CHARS_MAX]
        for line in lines
        if "Traceback" in line
        or " diverged " in line
        or ("misbehaved" in line and any(key in line for key in honest))
        or ("banned=True" in line and any(peer in line for peer in peers))
    ]


def penalties(lines: Sequence[str], peers: Collection[str]) -> int:
    """How often a log says that something was held against one of these peers."""
    return sum("peer penalised" in line and any(peer in line for peer in peers) for line in lines)
