import pytest

from node.ledger.errors import ExecutionError
from node.ledger.money import split
from node.ledger.params import DEFAULTS, OPEN
from node.ledger.settlement import fee_parts


@pytest.mark.parametrize(
    ("amount", "weights", "parts"),
    [
        (10, [1, 1, 1], [4, 3, 3]),
        (11, [1, 1, 1], [4, 4, 3]),
        (10, [5, 6, 1], [4, 5, 1]),
        (1, [1, 2, 2], [0, 1, 0]),
        (7, [0, 3, 0], [0, 7, 0]),
        (0, [0, 0], [0, 0]),
        (5, [2**63], [5]),
    ],
)
def test_left_over_units_go_to_the_largest_remainders_the_earlier_first(
    amount: int, weights: list[int], parts: list[int]
) -> None:
    assert split(amount, weights) == parts


def test_something_cannot_be_split_among_nothing() -> None:
    with pytest.raises(ExecutionError):
        split(1, [0, 0])


def test_the_example_of_the_document() -> None:
    assert fee_parts(DEFAULTS, OPEN) == (50_000_000, (190_000_000, 190_000_000, 95_000_000, 475_000_000))
