import pytest

from consensus.crypto import public_key
from node import receipts
from node.directory import Directory, make_directory
from node.ledger.batch import StorageClaim, sign_storage_receipt
from node.ledger.entries import ValidatorEntry, ValidatorSet
from node.receipts import ReceiptBook

CHAIN = b"c" * 32
SEEDS = [bytes([i]) * 32 for i in range(1, 5)]
CLAIM = StorageClaim(b"b" * 32, 9, b"r" * 32, 2, 7)


@pytest.fixture
def directory() -> Directory:
    entries = tuple(
        ValidatorEntry(bytes([i]) * 32, public_key(seed), f"12D3peer{i}", 10, bytes([i]) * 32)
        for i, seed in enumerate(SEEDS)
    )
    return make_directory(ValidatorSet(entries))


def test_a_quorum_needs_more_than_two_thirds_of_stake(directory: Directory) -> None:
    book = ReceiptBook(CHAIN, directory)
    for count, seed in enumerate(SEEDS, 1):
        assert book.add(CLAIM, public_key(seed), sign_storage_receipt(seed, CLAIM, CHAIN))
        assert (book.quorum(CLAIM) is not None) == (count >= 3)
    found = book.quorum(CLAIM)
    assert found is not None
    assert [account for account, _ in found] == sorted(public_key(seed) for seed in SEEDS)


def test_a_stranger_and_a_false_signature_are_refused(directory: Directory) -> None:
    book = ReceiptBook(CHAIN, directory)
    stranger = b"z" * 32
    assert not book.add(CLAIM, public_key(stranger), sign_storage_receipt(stranger, CLAIM, CHAIN))
    other = StorageClaim(b"o" * 32, 9, b"r" * 32, 2, 7)
    assert not book.add(CLAIM, public_key(SEEDS[0]), sign_storage_receipt(SEEDS[0], other, CHAIN))
    assert not book.add(CLAIM, public_key(SEEDS[0]), sign_storage_receipt(SEEDS[0], CLAIM, b"d" * 32))
    assert book.signature(CLAIM, public_key(SEEDS[0])) is None


def test_the_book_is_bounded_and_forgets_the_oldest(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "CLAIMS_MAX", 2)
    book = ReceiptBook(CHAIN, directory)
    claims = [StorageClaim(bytes([i]) * 32, i, b"", 0, 0) for i in range(3)]
    for claim in claims:
        assert book.add(claim, public_key(SEEDS[0]), sign_storage_receipt(SEEDS[0], claim, CHAIN))
    kept = [book.signature(claim, public_key(SEEDS[0])) is not None for claim in claims]
    assert kept == [False, True, True]
