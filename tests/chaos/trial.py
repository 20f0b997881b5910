"""One chaos run: load, faults in their order, and after each the measure of how soon everybody follows again; then the books."""

import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import trio

from node.devnet.processes import last_lines
from node.keys import load_seed, public_key
from node.ledger.state import get_account
from node.storage.chain import ChainStore
from node.storage.database import Database
from node.storage.errors import StorageError
from tests.chaos.census import starved_s
from tests.chaos.faults import Inflicted, Striker
from tests.chaos.fleet import Fleet, NotInTime
from tests.chaos.load import Load, next_nonce
from tests.chaos.rpc import NodeSilent, Refused, call_batch
from tests.chaos.schedule import BEYOND_F, Fault

PROBES = tuple(f"probe-{number:02}" for number in range(40))
"""Accounts of one transfer at a time, so that what a probe waits for is the network and not an earlier transfer."""

PROBE_AGAIN_S = 1.0
RECOVERY_S_MAX = 90.0
"""Given up after; how long a recovery may take is the caller's to say."""

CLOSING_S_MAX = 5.0
"""A run that has failed already waits only so long for its nodes to reach one height."""

STOP_S_MAX = 10.0
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
    """

    fault: Fault
    beside_s: float | None
    started_s: float
    recovered_s: float
    starved_s: float

    @property
    def own_s(self) -> float:
        """The recovery without the machine's part in it: what is left is the protocol's."""
        return self.recovered_s - self.starved_s


@dataclass(slots=True)
class Trial:
    """A run in progress, and its findings."""

    fleet: Fleet
    load: Load
    striker: Striker
    recoveries: list[Recovery] = field(default_factory=list)
    struck: list[Inflicted] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    _probes: int = 0

    async def strike(self, fault: Fault) -> None:
        """Inflict, hold and heal one fault; returns once everybody follows, or it is a finding."""
        fleet = self.fleet
        apart = set(fault.nodes)
        beside: list[float] = []
        done = await self.striker.inflict(fault)
        self.struck.append(done)
        async with trio.open_nursery() as nursery:
            if fault.kind not in BEYOND_F:
                nursery.start_soon(self._beside, [name for name in fleet.live if name not in apart], beside)
            await self.striker.hold(fault)
        begin = trio.current_time()
        await self.striker.heal(done)
        self.findings += [f"{fault}: {text}" for text in done.complaints]
        try:
            for name in fault.nodes:
                await fleet.up(name)
            started_s = trio.current_time() - begin
            before = {name: starved_s(fleet.seats[name]) for name in fleet.live}
            recovered_s = await self._probe(fleet.live)
            starved = min(starved_s(fleet.seats[name]) - before[name] for name in before)
            self.recoveries.append(
                Recovery(fault, beside[0] if beside else None, started_s, recovered_s, starved)
            )
        except NotInTime as error:
            heights = ", ".join(f"{name} {height}" for name, height in fleet.witness.heights.items())
            self.findings.append(f"no recovery from {fault}: {error} ({heights})")
        self._look_for_the_dead()

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
                nursery.start_soon(self._send_probe, account.name, names, hashes)
                wanted = set(names)
                took_s = await self.fleet.until(
                    "a new transfer on every honest node", lambda: wanted <= executed, RECOVERY_S_MAX
                )
                nursery.cancel_scope.cancel()
            return took_s
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self.fleet.listeners.remove(listen)

    async def _send_probe(self, name: str, names: list[str], hashes: set[str]) -> None:
        """The same transfer to one node after the other, once more each second: a node may have lost what it was told."""
        account, raw, position = self.fleet.network.account(name), "", 0
        while True:
            entry = names[position % len(names)]
            position += 1
            try:
                if not raw:
                    tx_hash, raw = self.load.raw(account, await next_nonce(self.fleet, entry, account))
                    hashes.add(tx_hash)
                await call_batch(self.fleet.url(entry), [("tx_submit", {"tx": raw})])
            except (NodeSilent, Refused):
                continue_s = 0.1
            else:
                continue_s = PROBE_AGAIN_S
            await trio.sleep(continue_s)

    def _look_for_the_dead(self) -> None:
        for name, seat in self.fleet.seats.items():
            if not seat.running and not seat.hostile:
                self.findings.append(f"{name} ended although nothing made it end:\n{last_lines(seat.log)}")

    # --- the end ---

    async def close_books(self) -> None:
        """After the load: everybody reaches one height, stops when told, and its disk holds what was said."""
        fleet = self.fleet
        goal = fleet.height() + 2
        try:
            await fleet.until(
                f"height {goal} on every honest node",
                lambda: all(fleet.witness.heights.get(name, 0) >= goal for name in fleet.live),
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
            for height in range(1, store.executed().height + 1):
                block_id, outcome = store.committed_id(height), store.outcome(height)
                if block_id is None or outcome is None:
                    self.findings.append(f"SAFETY: {name}'s database lacks height {height}")
                    continue
                witness.block(f"{name}'s disk", height, block_id.hex(), outcome.state_digest.hex())
            places = {tx: store.transaction_place(bytes.fromhex(tx)) for tx in witness.executed}
            witness.final(
                f"{name}'s disk", {tx: place[0] for tx, place in places.items() if place is not None}
            )
            paid = sum(place.status == "ok" for place in witness.executed.values())
            balance = get_account(store, self.load.receiver).balance
            if balance < paid:
                self.findings.append(
                    f"SAFETY: {paid} transfers were acknowledged, {name}'s ledger has {balance}"
                )
        finally:
            database.close()

    def _read_logs(self) -> None:
        """No traceback; nobody honest accused; nobody diverged."""
        seats = self.fleet.seats.values()
        honest = {
            public_key(load_seed(seat.plan.home.consensus_key_path)).hex()
            for seat in seats
            if seat.plan.validator and not seat.hostile
        }
        for seat in seats:
            if seat.hostile:
                continue
            found = suspicious(seat.log.read_text(errors="replace").splitlines(), honest)
            self.findings += [f"in the log of {seat.plan.name}: {line}" for line in found]


def suspicious(lines: Sequence[str], honest: Collection[str]) -> list[str]:
    """Lines of a log that must not be: tracebacks, a state that differs, an accusation of one of the `honest` keys (hex)."""
    return [
        line.strip()[:LINE_CHARS_MAX]
        for line in lines
        if "Traceback" in line
        or " diverged " in line
        or ("misbehaved" in line and any(key in line for key in honest))
    ]
