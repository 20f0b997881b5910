"""Commit, open, settle: what counts, what does not, and who is paid."""

from dataclasses import replace

import pytest

from node.ledger.block import ReceiptStatus
from node.ledger.bodies import AttestCommit
from node.ledger.entries import AUDITS_KEY, InferenceStatus, Role
from node.ledger.params import OPEN
from node.ledger.queries import inferences_to_commit, inferences_to_open
from node.ledger.results import AuditStatus
from node.ledger.state import get_deadlines, get_provider, get_supply
from tests.unit.node_ledger.world import BALANCE, PARAMS, STAKE, VALIDATORS, World, address, codes


def commit(world: World, inference: bytes, *names: str, attempt: int = 0, result: bytes = b"right") -> None:
    answer = world.answer(inference, result, attempt=attempt)
    outcome = world.block(*[world.tx(name, world.commit_body(inference, answer, name)) for name in names])
    assert codes(outcome)[: len(names)] == [""] * len(names)


def reopen(
    world: World, inference: bytes, *names: str, attempt: int = 0, result: bytes = b"right"
) -> list[str]:
    answer = world.answer(inference, result, attempt=attempt)
    return codes(world.block(*[world.tx(name, answer) for name in names]))


def test_four_equal_attestations_settle_and_pay_everybody_named() -> None:
    world = World()
    name = world.revealed(world.active_adapter(), fee=OPEN)
    before = {
        person: world.balance(person) for person in ("owner", "provider", "ann", "ben", "cid", "treasury")
    }
    world.attest(name, {validator: world.answer(name) for validator in VALIDATORS})
    gained = {person: world.balance(person) - balance for person, balance in before.items()}
    assert gained == {
        "owner": 190_000_000,
        "provider": 190_000_000,
        "ann": 285_000_000,
        "ben": 71_250_000,
        "cid": 0,
        "treasury": 118_750_000,
    }
    inference = world.inference(name)
    assert inference.status == InferenceStatus.SETTLED
    assert inference.burned == 50_000_000
    assert sum(payout.amount for payout in inference.payouts) + inference.burned == OPEN
    validators = [payout for payout in inference.payouts if payout.role == Role.VALIDATOR]
    assert [payout.amount for payout in validators] == [23_750_000] * 4
    assert inference.result == world.answer(name).result()
    assert get_supply(world.state).burned == 50_000_000
    assert world.accounted() == get_supply(world.state).total
    assert get_deadlines(world.state, AUDITS_KEY) == ()
    receipt = world.outcomes[-1].receipts[-1]
    assert (receipt.subject, receipt.status, receipt.code) == (name, ReceiptStatus.SYSTEM, "settled")
    assert (receipt.payouts, receipt.burned) == (inference.payouts, inference.burned)


def test_a_wrong_result_is_outvoted_and_loses_its_share_to_the_treasury() -> None:
    world = World()
    name = world.revealed(world.active_adapter())
    answers = {validator: world.answer(name) for validator in VALIDATORS}
    answers["val2"] = world.answer(name, b"one bit off")
    world.attest(name, answers)
    inference = world.inference(name)
    assert inference.status == InferenceStatus.SETTLED
    assert inference.result == world.answer(name).result()
    paid = {payout.address for payout in inference.payouts if payout.role == Role.VALIDATOR}
    assert paid == {address(validator) for validator in VALIDATORS} - {address("val2")}
    (absent,) = (payout for payout in inference.payouts if payout.role == Role.ABSENT_VALIDATOR)
    assert (absent.address, absent.amount) == (bytes(32), 23_750_000)


def test_a_copied_commitment_does_not_open() -> None:
    world = World()
    name = world.revealed(world.active_adapter())
    answer = world.answer(name)
    honest = world.commit_body(name, answer, "val0")
    world.block(
        world.tx("val0", honest),
        world.tx("val1", world.commit_body(name, answer, "val1")),
        world.tx("val2", world.commit_body(name, answer, "val2")),
        world.tx("val3", AttestCommit(name, 0, honest.commitment)),
    )
    outcome = world.block(*[world.tx(validator, answer) for validator in VALIDATORS])
    assert codes(outcome) == ["", "", "", "opening-mismatch"]
    world.until(name, InferenceStatus.SETTLED)
    paid = {payout.address for payout in world.inference(name).payouts if payout.role == Role.VALIDATOR}
    assert paid == {address(validator) for validator in VALIDATORS[:3]}


def test_no_commitment_is_taken_once_openings_are() -> None:
    world = World()
    name = world.revealed(world.active_adapter())
    commit(world, name, "val0", "val1", "val2")
    late = world.commit_body(name, world.answer(name), "val3")
    world.until(name, InferenceStatus.OPENING)
    assert codes(world.block(world.tx("val3", late))) == ["duty-not-owed"]
    assert reopen(world, name, "val0") == [""]
    assert codes(world.block(world.tx("val3", late))) == ["duty-not-owed"]


def test_no_opening_is_taken_before_the_commit_window_is_over() -> None:
    world = World()
    name = world.revealed(world.active_adapter())
    commit(world, name, "val0", "val1", "val2")
    assert inferences_to_open(world.state, address("val0")) == ()
    assert reopen(world, name, "val0") == ["duty-not-owed"]
    commit(world, name, "val3")  # nobody is missing any more
    assert len(inferences_to_open(world.state, address("val0"))) == 1
    assert reopen(world, name, "val0") == [""]
    assert inferences_to_open(world.state, address("val0")) == ()
    assert reopen(world, name, "val0") == ["duty-not-owed"]


def test_the_commit_window_starts_again_until_a_quorum_committed() -> None:
    world = World()
    name = world.revealed(world.active_adapter())
    commit(world, name, "val0", "val1")
    world.blocks(20)
    inference = world.inference(name)
    assert (inference.status, inference.attempt) == (InferenceStatus.COMMITTING, 0)
    assert len(inferences_to_commit(world.state, address("val2"))) == 1
    assert inferences_to_commit(world.state, address("val0")) == ()
    commit(world, name, "val2")
    world.until(name, InferenceStatus.OPENING)
    assert reopen(world, name, "val0", "val1", "val2")[-1] == "settled"


def test_a_validator_commits_once_in_an_attempt() -> None:
    world = World()
    name = world.revealed(world.active_adapter())
    commit(world, name, "val0")
    other = world.commit_body(name, world.answer(name, b"other"), "val0")
    assert codes(world.block(world.tx("val0", other))) == ["duty-not-owed"]
    early = replace(other, attempt=1)
    assert codes(world.block(world.tx("val1", early))) == ["duty-not-owed"]
    assert codes(world.block(world.tx("ann", other))) == ["duty-not-owed"]


def test_changing_any_part_of_an_opening_is_a_mismatch() -> None:
    world = World()
    name = world.revealed(world.active_adapter())
    commit(world, name, *VALIDATORS)
    answer = world.answer(name)
    for changed in (
        replace(answer, result_hash=bytes(32)),
        replace(answer, salt=bytes(32)),
        replace(answer, shares=world.shares(ann=10**9)),
        replace(answer, status_code=AuditStatus.NON_FINITE, shares=()),
    ):
        assert codes(world.block(world.tx("val0", changed))) == ["opening-mismatch"]
    assert reopen(world, name, "val0") == [""]


@pytest.mark.parametrize("status", [AuditStatus.OUTPUT_DIFFERS, AuditStatus.OPENING_INVALID])
def test_a_provider_found_wrong_by_the_quorum_loses_its_bond_and_the_user_is_refunded(
    status: AuditStatus,
) -> None:
    world = World()
    name = world.revealed(world.active_adapter(), fee=2 * OPEN)
    treasury = world.balance("treasury")
    world.attest(name, {validator: world.answer(name, status=status) for validator in VALIDATORS})
    inference = world.inference(name)
    assert (inference.status, inference.burned) == (InferenceStatus.SLASHED, 0)
    assert inference.bond_burned == PARAMS.provider_bond_min
    assert world.balance("user") == BALANCE
    assert world.balance("treasury") == treasury
    provider = get_provider(world.state, address("provider"))
    assert provider is not None
    assert (provider.bond, provider.slashed) == (0, PARAMS.provider_bond_min)
    assert (provider.in_flight, provider.in_flight_fees) == (0, 0)
    assert get_supply(world.state).burned == PARAMS.provider_bond_min
    assert world.accounted() == get_supply(world.state).total


def test_an_error_nobody_is_to_blame_for_refunds_the_user_and_keeps_the_bond() -> None:
    world = World()
    name = world.revealed(world.active_adapter())
    answer = {validator: world.answer(name, status=AuditStatus.NON_FINITE) for validator in VALIDATORS}
    world.attest(name, answer)
    assert world.inference(name).status == InferenceStatus.REFUNDED
    assert world.balance("user") == BALANCE
    assert get_supply(world.state).bonded == PARAMS.provider_bond_min


def test_without_a_quorum_fee_and_bond_stay_locked_and_a_new_attempt_can_still_settle() -> None:
    world = World()
    name = world.revealed(world.active_adapter())
    answers = {validator: world.answer(name) for validator in VALIDATORS}
    answers["val2"] = answers["val3"] = world.answer(name, b"wrong")
    world.attest(name, answers)
    inference = world.inference(name)
    assert (inference.status, inference.attempt, len(inference.results)) == (InferenceStatus.COMMITTING, 1, 2)
    assert get_supply(world.state).escrowed == OPEN
    assert get_supply(world.state).bonded == PARAMS.provider_bond_min
    # val2 mends its machine and attests again: its opening is counted, but by now it could have been copied
    commit(world, name, "val2", attempt=1)
    assert reopen(world, name, "val2", attempt=1)[-1] == "settled"
    closed = world.inference(name)
    paid = {payout.address for payout in closed.payouts if payout.role == Role.VALIDATOR}
    assert paid == {address("val0"), address("val1")}


def test_those_who_opened_in_time_are_paid_even_if_the_quorum_needed_another_attempt() -> None:
    world = World()
    name = world.revealed(world.active_adapter())
    commit(world, name, *VALIDATORS)
    reopen(world, name, "val0", "val1")
    world.until(name, InferenceStatus.COMMITTING)
    assert world.inference(name).attempt == 1
    assert inferences_to_commit(world.state, address("val0")) == ()
    commit(world, name, "val3", attempt=1)
    world.until(name, InferenceStatus.OPENING)
    assert reopen(world, name, "val3", attempt=1)[-1] == "settled"
    payouts = world.inference(name).payouts
    paid = {payout.address for payout in payouts if payout.role == Role.VALIDATOR}
    assert paid == {address("val0"), address("val1")}


def test_an_audit_with_nothing_new_keeps_trying_without_growing() -> None:
    world = World()
    name = world.revealed(world.active_adapter())
    answers = {validator: world.answer(name, validator.encode()) for validator in VALIDATORS}
    world.attest(name, answers)
    size = len(world.state[b"i/" + name])
    world.blocks(40)
    inference = world.inference(name)
    assert inference.attempt > 3
    assert abs(len(world.state[b"i/" + name]) - size) < 32
    assert world.accounted() == get_supply(world.state).total


def test_openings_are_awaited_until_everybody_that_committed_opened() -> None:
    world = World()
    name = world.revealed(world.active_adapter())
    commit(world, name, *VALIDATORS)
    assert reopen(world, name, "val0", "val1", "val2") == ["", "", ""]
    assert world.inference(name).status == InferenceStatus.OPENING
    assert reopen(world, name, "val3") == ["", "settled"]
    assert len(world.inference(name).openings) == 4


def test_a_share_of_a_stranger_is_paid_to_whom_the_quorum_named() -> None:
    world = World()
    name = world.revealed(world.active_adapter())
    answer = replace(world.answer(name), shares=world.shares(cid=10**9))
    cid = world.balance("cid")
    world.attest(name, dict.fromkeys(VALIDATORS, answer))
    assert world.balance("cid") - cid == 475_000_000


def test_calls_in_flight_of_a_slashed_provider_are_still_judged() -> None:
    world = World()
    adapter = world.active_adapter()
    first, second = world.record(adapter, 1), world.record(adapter, 2)
    for name in (first, second):
        world.until(name, InferenceStatus.SLASHED)
    assert world.inference(first).bond_burned == PARAMS.provider_bond_min
    assert world.inference(second).bond_burned == 0
    assert world.balance("user") == BALANCE
    assert world.accounted() == get_supply(world.state).total


def test_stake_decides_and_not_the_number_of_validators() -> None:
    world = World(stakes=(7 * STAKE, STAKE, STAKE, STAKE))
    name = world.revealed(world.active_adapter())
    answers = {validator: world.answer(name, b"many but small") for validator in VALIDATORS}
    answers["val0"] = world.answer(name)
    world.attest(name, answers)
    inference = world.inference(name)
    assert inference.result == world.answer(name).result()
    paid = {payout.address for payout in inference.payouts if payout.role == Role.VALIDATOR}
    assert paid == {address("val0")}
