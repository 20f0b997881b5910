"""What each rule is there for: without it the search finds a history that forks the chain, or says why it finds none."""

from dataclasses import dataclass

from tests.model.explore import Result, explore
from tests.model.rules import Bounds, without

FORK = "a certified block beside a committed one"
TWO_TIMEOUTS = "two timeouts in a round"


@dataclass(frozen=True, slots=True)
class Need:
    """Where a rule's absence shows: the rounds it takes, and what breaks there."""

    rounds: int
    broken: str = FORK


NEEDED: dict[str, Need] = {
    "vote_above_last_voted": Need(2),
    "vote_raises_last_voted": Need(2),
    "vote_raises_lock": Need(3),
    "vote_extends_its_qc": Need(2),
    "skip_needs_tc": Need(2),
    "skip_tc_of_round_before": Need(3),
    "skip_extends_tc_high": Need(3),
    "tc_high_is_max": Need(3),
    "timeout_once": Need(3, TWO_TIMEOUTS),
    "timeout_not_below_lock": Need(2),
    "timeout_raises_last_voted": Need(3),
    "timeout_raises_highest_timeout": Need(2),
    "commit_needs_qc": Need(3),
    "commit_above_highest_timeout": Need(2),
    "commit_raises_lock": Need(2),
    "two_chain_consecutive": Need(3),
    "record_survives": Need(2),
    "qc_quorum": Need(3),
    "cc_quorum": Need(2),
    "tc_quorum": Need(2),
    "kinds_apart": Need(2),
}
"""Rules without which the chain forks, or an honest key contradicts itself."""

NOT_FOR_SAFETY: dict[str, str] = {
    "timeout_above_last_voted": "a timeout below the last vote still carries a QC not below the lock: it weakens no later TC. Kept since "
    "one who voted in a round has left the rounds before it, and so that what is signed only rises",
    "timeout_above_its_qc": "a higher QC in a timeout only asks more of the next proposal. Kept since a certified round has not failed",
    "timeout_of_reached_round": "a TC of a round nobody reached permits no more than one of a round that was. Kept since it "
    "stops a few hasty validators from skipping the turns of many leaders",
    "commit_rounds_rise": "commit votes of several rounds agree while one block a round is certified. Kept since one stored commit "
    "vote is then enough never to contradict it",
}
"""Rules without which nothing breaks within the bound, and what they are for."""


def without_rule(name: str, *, keep_paths: bool = False) -> Result:
    """Search for what breaks without a needed rule."""
    need = NEEDED[name]
    judged = frozenset({need.broken})
    return explore(Bounds(rounds=need.rounds), without(name), judged=judged, keep_paths=keep_paths)


def without_spare_rule(name: str, rounds: int) -> Result:
    """Search everything within a bound without a rule that safety does not rest on; reductions presume the rules, so none is made."""
    if name not in NOT_FOR_SAFETY:
        raise KeyError(name)
    return explore(Bounds(rounds=rounds, reduced=False), without(name))
