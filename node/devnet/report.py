"""The story's outcome as plain data, and the promises it is held to.

``HOME/report.json`` is this document; the terminal's tables are rendered from it and from nothing else
(`node.devnet.render`). Amounts are decimal strings of units, hashes are hex, shares are integers of 10^9.

::

    {"version": 1, "ok": bool, "chain_id", "story": "stdlib" | "directory",
     "nodes":        [{"name", "validator", "rpc_url", "peer_id", "state_digest"}],
     "height":       the height at which every node's state_digest was read,
     "datanet":      id,
     "contributors": [{"name", "address", "records", "tokens", "contribution", "records_root"}],
     "model":        {"base_hash", "adapter", "adapter_hash", "index_root", "status", "held_by", "owner"},
     "provider":     {"name", "address", "bond"},
     "inferences":   [{"number", "id", "kind", "about", "prompt", "output", "expected", "fee", "status", "audited",
                       "result_hash", "attesters": [{"name", "result_hash"}], "shares": [{"name", "share"}],
                       "payouts": [{"name", "role", "amount"}], "burned"}],
     "supply_before", "supply_after", "burned", "free", "escrowed", "bonded", "staked",
     "earned":       [{"name", "role", "amount", "answers"}],
     "unrelated":    {"texts", "unattributed_mean", "unattributed_min"},
     "submitted_at": [RPC URLs that transactions were submitted to],
     "time":         [{"step", "seconds"}], "seconds", "seconds_max" (null: no promise was made),
     "checks":       [{"name", "passed", "detail"}]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from node.home import write_atomic
from node.ledger.params import OPEN

VERSION = 1
SHARES_TOTAL = 10**9
AUDITED_MIN = 4
UNAUDITED_MIN = 2
VERBATIM_RATIO_MIN = 0.9
UNRELATED_UNATTRIBUTED_MIN = 950_000_000
SECONDS_MAX = 150.0
UNATTRIBUTED = "unattributed"

RECORD_BEGINNING = "record"
UNRELATED = "unrelated"
INVENTED = "invented"


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node and its state's digest (hex) at the report's height."""

    name: str
    validator: bool
    rpc_url: str
    peer_id: str
    state_digest: str


@dataclass(frozen=True, slots=True)
class ContributorView:
    """Who contributed what."""

    name: str
    address: str
    records: int
    tokens: int
    contribution: str
    records_root: str


@dataclass(frozen=True, slots=True)
class ModelView:
    """The adapter of the story; ``status`` as on the ledger, ``held_by`` the validators that confirmed its index root."""

    base_hash: str
    adapter: str
    adapter_hash: str
    index_root: str
    status: str
    held_by: tuple[str, ...]
    owner: str


@dataclass(frozen=True, slots=True)
class ProviderView:
    """Who served; ``bond`` in units."""

    name: str
    address: str
    bond: str


@dataclass(frozen=True, slots=True)
class Attester:
    """A validator and the result hash (hex) it opened."""

    name: str
    result_hash: str


@dataclass(frozen=True, slots=True)
class Share:
    """A contributor's part of 10^9, or that of nobody (`UNATTRIBUTED`)."""

    name: str
    share: int


@dataclass(frozen=True, slots=True)
class PayoutView:
    """Units paid to somebody, and why."""

    name: str
    role: str
    amount: str


@dataclass(frozen=True, slots=True)
class InferenceView:
    """One paid call. ``about`` is whose record the prompt begins, ``expected`` the rest of that record."""

    number: int
    id: str
    kind: str
    about: str | None
    prompt: str
    output: str
    expected: str | None
    fee: str
    status: str
    audited: bool
    result_hash: str | None
    attesters: tuple[Attester, ...] = ()
    shares: tuple[Share, ...] = ()
    payouts: tuple[PayoutView, ...] = ()
    burned: str = "0"

    @property
    def leader(self) -> str | None:
        """The contributor with the largest share; None where nobody but `UNATTRIBUTED` has one."""
        named = [share for share in self.shares if share.name != UNATTRIBUTED]
        return max(named, key=lambda share: share.share).name if named else None


def likeness(output: str, expected: str | None) -> float:
    """How alike an answer and a record's rest are, 0 to 1 (difflib's ratio); 0 where there is no record."""
    return SequenceMatcher(None, output, expected, autojunk=False).ratio() if expected else 0.0


@dataclass(frozen=True, slots=True)
class Earned:
    """What one account earned in all audited calls, and in how many of them."""

    name: str
    role: str
    amount: str
    answers: int


@dataclass(frozen=True, slots=True)
class UnrelatedView:
    """Text that no record resembles, scored teacher-forced with the story's index: its unattributed parts of 10^9."""

    texts: int
    unattributed_mean: int
    unattributed_min: int


@dataclass(frozen=True, slots=True)
class TimeView:
    """Seconds one step took."""

    step: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Check:
    """A promise, whether it held, and the figures behind that."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the story came to; see the module's docstring for the file."""

    chain_id: str
    story: str
    nodes: tuple[NodeState, ...]
    height: int
    datanet: str
    contributors: tuple[ContributorView, ...]
    model: ModelView
    provider: ProviderView
    inferences: tuple[InferenceView, ...]
    supply_before: str
    supply_after: str
    burned: str
    free: str
    escrowed: str
    bonded: str
    staked: str
    earned: tuple[Earned, ...]
    unrelated: UnrelatedView
    submitted_at: tuple[str, ...]
    time: tuple[TimeView, ...]
    seconds: float
    seconds_max: float | None = SECONDS_MAX
    checks: tuple[Check, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether every promise held."""
        return bool(self.checks) and all(check.passed for check in self.checks)


def check_report(report: Report) -> tuple[Check, ...]:
    """Hold a report to every promise of the story; the order is that of the story."""
    audited = [call for call in report.inferences if call.audited]
    waiting = [call for call in report.inferences if not call.audited]
    return (
        _entered_at_the_full_node(report),
        _adapter_is_confirmed(report),
        _enough_of_both(audited, waiting),
        _validators_agree(report, audited),
        _shares_are_whole(audited),
        _a_record_is_recited(audited),
        _unrelated_is_unattributed(report.unrelated),
        _fees_wait_in_escrow(report, waiting),
        _supply_is_conserved(report),
        _states_agree(report),
        *_in_time(report),
    )


def _entered_at_the_full_node(report: Report) -> Check:
    full = {node.rpc_url for node in report.nodes if not node.validator}
    passed = bool(report.submitted_at) and set(report.submitted_at) <= full
    return Check("every transaction entered at the full node", passed, ", ".join(report.submitted_at))


def _adapter_is_confirmed(report: Report) -> Check:
    model, validators = report.model, _validators(report)
    passed = model.status == "active" and 3 * len(model.held_by) > 2 * len(validators)
    return Check(
        "the adapter is active: validators rebuilt its index",
        passed,
        f"{len(model.held_by)} of {len(validators)} got {model.index_root[:12]}…",
    )


def _enough_of_both(audited: Sequence[InferenceView], waiting: Sequence[InferenceView]) -> Check:
    passed = len(audited) >= AUDITED_MIN and len(waiting) >= UNAUDITED_MIN
    return Check(
        f"the beacon drew at least {AUDITED_MIN} calls, and left at least {UNAUDITED_MIN}",
        passed,
        f"{len(audited)} audited, {len(waiting)} not",
    )


def _validators_agree(report: Report, audited: Sequence[InferenceView]) -> Check:
    names = _validators(report)
    wrong = [
        call.number
        for call in audited
        if {attester.name for attester in call.attesters} != names
        or {attester.result_hash for attester in call.attesters} != {call.result_hash}
        or call.status != "settled"
    ]
    detail = (
        f"{len(names)} of {len(names)} in all {len(audited)}" if not wrong else f"not so in calls {wrong}"
    )
    return Check(
        "every validator attests the same result of every audited call", bool(audited) and not wrong, detail
    )


def _shares_are_whole(audited: Sequence[InferenceView]) -> Check:
    wrong = []
    for call in audited:
        paid = sum(int(payout.amount) for payout in call.payouts) + int(call.burned)
        if sum(share.share for share in call.shares) != SHARES_TOTAL or paid != int(call.fee):
            wrong.append(call.number)
    detail = "to the last unit" if not wrong else f"not so in calls {wrong}"
    return Check("shares sum to one, payouts and burn to the fee", bool(audited) and not wrong, detail)


def _a_record_is_recited(audited: Sequence[InferenceView]) -> Check:
    about = [call for call in audited if call.about is not None]
    alike = {call.number: likeness(call.output, call.expected) for call in about}
    good = [call for call in about if alike[call.number] >= VERBATIM_RATIO_MIN and call.leader == call.about]
    best = max(alike.values(), default=0.0)
    return Check(
        "a record's beginning is answered nearly verbatim, and its owner leads",
        bool(good),
        f"{len(good)} of {len(about)}, likeness up to {best:.2f}",
    )


def _unrelated_is_unattributed(unrelated: UnrelatedView) -> Check:
    return Check(
        "text unrelated to the datanet is almost wholly unattributed",
        unrelated.unattributed_mean >= UNRELATED_UNATTRIBUTED_MIN,
        f"{_percent(unrelated.unattributed_mean)} on average, {unrelated.texts} sentences",
    )


def _fees_wait_in_escrow(report: Report, waiting: Sequence[InferenceView]) -> Check:
    due = sum(int(call.fee) for call in waiting)
    return Check(
        "fees of calls not audited wait in escrow",
        due == int(report.escrowed),
        f"{format_open(report.escrowed)} OPEN of {len(waiting)} calls",
    )


def _supply_is_conserved(report: Report) -> Check:
    before, after, burned = int(report.supply_before), int(report.supply_after), int(report.burned)
    counted = sum(map(int, (report.free, report.escrowed, report.bonded, report.staked)))
    return Check(
        "supply before = supply after + burned, escrow counted",
        before == after + burned and after == counted and burned > 0,
        f"{format_open(before)} = {format_open(after)} + {format_open(burned)}",
    )


def _states_agree(report: Report) -> Check:
    digests = {node.state_digest for node in report.nodes}
    return Check(
        "every node has the same state digest at the same height",
        len(digests) == 1 and "" not in digests,
        f"{len(report.nodes)} at height {report.height}: {sorted(digests)[0][:12]}…",
    )


def _in_time(report: Report) -> tuple[Check, ...]:
    if report.seconds_max is None:
        return ()
    name = f"the story took at most {report.seconds_max:.0f} s"
    return (Check(name, report.seconds <= report.seconds_max, f"{report.seconds:.1f} s"),)


def _validators(report: Report) -> set[str]:
    return {node.name for node in report.nodes if node.validator}


def _percent(share: int) -> str:
    """A share of 10^9 as a percentage with one decimal, rounded down: never flatters."""
    return f"{share * 1000 // SHARES_TOTAL / 10:.1f} %"


def format_open(units: str | int, decimals: int = 2) -> str:
    """Units as OPEN, rounded down; the exact units are in the report."""
    whole, rest = divmod(int(units), OPEN)
    return f"{whole:,}.{rest // 10 ** (9 - decimals):0{decimals}d}" if decimals else f"{whole:,}"


def to_document(report: Report) -> dict[str, Any]:
    """The report as ``report.json`` holds it."""
    return {"version": VERSION, "ok": report.ok, **asdict(report)}


def write_report(path: Path, report: Report) -> dict[str, Any]:
    """Write ``report.json`` atomically and return the document that was written."""
    document = to_document(report)
    write_atomic(path, json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n", mode=0o644)
    return document


def read_report(path: Path) -> Mapping[str, Any]:
    """Read a ``report.json``."""
    document: Mapping[str, Any] = json.loads(path.read_bytes())
    return document
