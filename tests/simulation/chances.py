"""When a node that stands still may be blamed: the healed network had its chances.

A block is sure to be committed where three rounds in a row are led by honest validators that are there: the first
proposes, the second certifies, the third commits (each vote may go to the next leader alone). Leaders are drawn, so a
liar with a third of the turns now and then has nearly all of a dozen: bad luck, and nobody's fault.
"""

from collections.abc import Set

from consensus.leaders import Leaders
from consensus.validators import ValidatorSet


def chances(members: ValidatorSet, able: Set[bytes], first: int, last: int) -> int:
    """Count the rounds in `first` to `last` which, with the two after them, were led by validators of these ids."""
    leaders = Leaders(members)
    good = [members.validators[leaders.index(led)].id in able for led in range(first, last + 1)]
    return sum(map(all, zip(good, good[1:], good[2:], strict=False)))
