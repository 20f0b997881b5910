"""Tests of consensus and ledger that cannot be asked of machine code, by what they do that it cannot."""

SKIPPED: dict[str, tuple[str, ...]] = {
    "derives a class from a translated one": (
        "tests/unit/consensus/test_epoch_rules.py::test_a_signer_given_from_outside_signs_and_its_record_is_persisted",
        "tests/unit/consensus/test_epoch_rules.py::test_a_signer_of_a_stranger_or_of_another_epoch_or_beside_a_seed_is_refused",
        "tests/unit/consensus/test_settled.py::test_a_refused_vote_is_asked_for_again_with_the_next_message",
        "tests/unit/consensus/test_settled.py::test_a_refused_commit_vote_is_asked_for_again_with_the_next_message",
    ),
    "asks a data class for its __slots__": (
        "tests/unit/consensus/test_messages.py::test_a_block_id_covers_every_header_field",
    ),
    "replaces a function that a translated one calls": (
        "tests/unit/node_ledger/test_ledger_reading.py::test_a_transaction_is_read_once_and_the_memory_is_bounded",
    ),
}
"""By reason, the node ids."""
