"""Vouchers, records, the beacon's draw and the reveal."""

from dataclasses import replace

import pytest

from consensus.digest import digest
from node.ledger.block import ReceiptStatus
from node.ledger.bodies import InferenceReveal, ProviderBond, Transfer
from node.ledger.entries import InferenceStatus, Reveal
from node.ledger.openings import sign_voucher
from node.ledger.overlay import Overlay
from node.ledger.params import OPEN, Params
from node.ledger.queries import inferences_awaiting_draw, inferences_to_reveal
from node.ledger.serving import is_audited
from node.ledger.state import get_draws, get_provider, get_reveal, get_supply, get_voucher_sequence
from tests.unit.node_ledger.world import (
    BALANCE,
    INDEX_ROOT,
    PARAMS,
    VALIDATORS,
    World,
    address,
    codes,
    consensus_key,
    seed,
)


def test_recording_moves_the_fee_from_the_user_into_escrow() -> None:
    world = World()
    adapter = world.active_adapter()
    name = world.record(adapter, fee=3 * OPEN)
    assert world.balance("user") == BALANCE - 3 * OPEN
    assert get_supply(world.state).escrowed == 3 * OPEN
    assert get_voucher_sequence(world.state, address("user"), address("provider")) == 1
    assert inferences_awaiting_draw(world.state) == (name,)


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        ({"chain_id": bytes(32)}, "voucher-wrong-chain"),
        ({"provider": bytes(32)}, "voucher-wrong-provider"),
        ({"valid_until": 3}, "voucher-expired"),
        ({"fee": 1}, "voucher-fee-too-low"),
        ({"user": address("ann")}, "voucher-bad-signature"),
        ({"adapter": bytes(32)}, "unknown-adapter"),
        ({"new_tokens_max": 513}, "limit-exceeded"),
        ({"new_tokens_max": 2}, "limit-exceeded"),
        ({"fee": PARAMS.provider_bond_min + 1}, "in-flight-full"),
    ],
)
def test_a_voucher_that_cannot_be_charged_fails_its_record(
    overrides: dict[str, int | bytes], code: str
) -> None:
    world = World()
    adapter = world.active_adapter()
    receipt = world.submit(
        "provider",
        world.record_body(replace(world.voucher(adapter), **overrides)),  # type: ignore[arg-type]
    )
    assert (receipt.status, receipt.code) == (ReceiptStatus.FAILED, code)
    assert world.balance("user") == BALANCE
    assert get_supply(world.state).escrowed == 0
    assert get_draws(world.state) == ()


def test_a_prompt_over_the_limit_fails() -> None:
    world = World()
    adapter = world.active_adapter()
    body = replace(world.record_body(world.voucher(adapter)), prompt_tokens=PARAMS.prompt_tokens_max + 1)
    assert world.submit("provider", body).code == "limit-exceeded"


def test_sequences_are_recorded_once_and_only_upwards() -> None:
    world = World()
    adapter = world.active_adapter()
    world.record(adapter, sequence=7)
    for sequence in (7, 6, 1):
        body = world.record_body(world.voucher(adapter, sequence))
        assert world.submit("provider", body).code == "voucher-sequence-used"
    world.record(adapter, sequence=9)


def test_a_voucher_signed_by_somebody_else_is_refused() -> None:
    world = World()
    adapter = world.active_adapter()
    voucher = world.voucher(adapter)
    body = replace(world.record_body(voucher), voucher_signature=sign_voucher(seed("ann"), voucher))
    assert world.submit("provider", body).code == "voucher-bad-signature"


def test_an_unconfirmed_adapter_earns_nothing() -> None:
    world = World()
    adapter = world.active_adapter()
    del adapter
    contributions = tuple(outcome.receipts[0].subject for outcome in world.outcomes[1:4])
    pending = world.accept("owner", world.adapter_body(contributions, "second"))
    body = world.record_body(world.voucher(pending))
    assert world.submit("provider", body).code == "adapter-not-active"
    world.hold(pending, INDEX_ROOT, VALIDATORS[:2])
    assert world.submit("provider", body).code == "adapter-not-active"
    world.hold(pending, INDEX_ROOT, VALIDATORS[2:3])
    world.accept("provider", body)


def test_serving_needs_a_bond_and_the_bond_limits_what_is_in_flight() -> None:
    world = World(replace(PARAMS, in_flight_per_bond_max=2, provider_bond_min=10 * OPEN))
    adapter = world.active_adapter()
    other = replace(world.voucher(adapter), provider=address("ann"))
    assert world.submit("ann", world.record_body(other)).code == "bond-too-low"
    silent = replace(world.context(), beacon_reveal=b"")
    first, second, third = (world.record_body(world.voucher(adapter, number)) for number in (1, 2, 3))
    nonce = 1
    outcome = world.block(
        world.tx("provider", first, nonce=nonce),
        world.tx("provider", second, nonce=nonce + 1),
        world.tx("provider", third, nonce=nonce + 2),
        context=silent,
    )
    assert codes(outcome) == ["", "", "in-flight-full"]
    bond = world.tx("provider", ProviderBond(10 * OPEN, "more"))
    assert codes(world.block(bond, context=replace(world.context(), beacon_reveal=b""))) == [""]
    world.accept("provider", third)


def test_fees_in_flight_never_exceed_the_bond() -> None:
    world = World(replace(PARAMS, audit_probability_ppb=0))
    adapter = world.active_adapter()
    most = world.record_body(world.voucher(adapter, 1, fee=PARAMS.provider_bond_min - OPEN))
    world.accept("provider", most)
    assert (
        world.submit("provider", world.record_body(world.voucher(adapter, 2, 2 * OPEN))).code
        == "in-flight-full"
    )
    world.accept("provider", world.record_body(world.voucher(adapter, 2)))
    world.blocks(4)  # the beacon lets them land
    world.record(adapter, 3, PARAMS.provider_bond_min)


def test_the_backlog_of_open_inferences_is_bounded() -> None:
    world = World(replace(PARAMS, inferences_open_max=1))
    adapter = world.active_adapter()
    world.drawn(adapter, 1)
    assert world.submit("provider", world.record_body(world.voucher(adapter, 2))).code == "backlog-full"


def test_a_draw_waits_for_reveals_of_more_than_a_third_of_stake_after_the_record_was_committed() -> None:
    world = World()
    adapter = world.active_adapter()
    name = world.record(adapter)
    recorded = world.height

    def block(proposer: str, executed: int, reveal: bytes | None = None) -> InferenceStatus:
        world.block(context=replace(world.context(proposer, reveal), executed_height=executed))
        return InferenceStatus(world.inference(name).status)

    assert block("val0", recorded - 1) == InferenceStatus.RECORDED  # proposed before the record was executed
    assert block("val1", recorded, b"") == InferenceStatus.RECORDED  # reveals nothing
    assert block("val1", recorded) == InferenceStatus.RECORDED  # one proposer of four
    assert block("val1", recorded) == InferenceStatus.RECORDED  # the same once more
    assert block("val0", recorded) == InferenceStatus.AWAITING_REVEAL
    assert world.inference(name).drawn_height == world.height
    assert codes(world.outcomes[-1]) == ["drawn"]


def test_the_draw_depends_on_every_counted_reveal_and_on_nothing_else() -> None:
    def drawn(first: bytes, second: bytes, early: bytes = b"") -> bytes:
        world = World()
        name = world.record(world.active_adapter())
        recorded = world.height
        world.block(context=replace(world.context("val3", early), executed_height=recorded - 1))
        world.block(context=replace(world.context("val0", first), executed_height=recorded))
        world.block(context=replace(world.context("val1", second), executed_height=recorded))
        return world.inference(name).draw

    a, b, c = (digest("blob", bytes([number])) for number in range(3))
    assert drawn(a, b) == drawn(a, b, c)
    assert len({drawn(a, b), drawn(b, a), drawn(a, c), drawn(c, b)}) == 4


def test_two_inferences_of_one_block_are_drawn_apart() -> None:
    world = World(replace(PARAMS, audit_probability_ppb=500_000_000))
    adapter = world.active_adapter()
    vouchers = [world.voucher(adapter, number) for number in range(1, 41)]
    world.block(
        *[
            world.tx("provider", world.record_body(voucher), nonce=1 + number)
            for number, voucher in enumerate(vouchers)
        ]
    )
    world.blocks(2)
    drawn = [code for code in codes(world.outcomes[-1]) if code == "drawn"]
    assert 8 <= len(drawn) <= 32
    assert codes(world.outcomes[-1]).count("unaudited") == 40 - len(drawn)
    assert len(inferences_to_reveal(world.state, address("provider"))) == len(drawn)


def test_an_undrawn_fee_stays_in_escrow_and_is_no_longer_in_flight() -> None:
    world = World(replace(PARAMS, audit_probability_ppb=0))
    name = world.drawn(world.active_adapter())
    assert world.inference(name).status == InferenceStatus.UNAUDITED
    assert get_supply(world.state).escrowed == OPEN
    provider = get_provider(world.state, address("provider"))
    assert provider is not None
    assert (provider.in_flight, provider.in_flight_fees, provider.recorded) == (0, 0, 1)
    world.blocks(20)
    assert get_supply(world.state).escrowed == OPEN


def test_the_audit_threshold_is_an_integer_comparison() -> None:
    half = Params(audit_probability_ppb=500_000_000)
    assert is_audited(half, b"\x7f" + b"\xff" * 31)
    assert not is_audited(half, b"\x80" + bytes(31))
    assert is_audited(Params(audit_probability_ppb=10**9), b"\xff" * 32)
    assert not is_audited(Params(audit_probability_ppb=0), bytes(32))


def test_the_last_reveal_of_each_proposer_is_kept() -> None:
    world = World()
    world.block(context=world.context("val1", bytes([5]) * 32))
    anchor = digest("blob", b"anchor")
    assert get_reveal(world.state, consensus_key("val1")) == Reveal(1, bytes([5]) * 32, anchor)
    assert get_reveal(world.state, consensus_key("val2")) is None


def test_a_reveal_is_taken_once_from_the_provider_and_only_when_drawn() -> None:
    world = World()
    adapter = world.active_adapter()
    name = world.record(adapter)
    reveal = InferenceReveal(name, digest("blob", b"opening"), 100)
    assert world.submit("provider", reveal).code == "reveal-not-awaited"
    world.blocks(2)
    assert world.submit("ann", reveal).code == "not-the-provider"
    assert world.submit("provider", replace(reveal, inference=bytes(32))).code == "unknown-inference"
    (duty,) = inferences_to_reveal(world.state, address("provider"))
    assert duty.inference_id == name
    unstored = world.tx("provider", reveal)
    assert codes(world.block((unstored, world.stored(unstored, VALIDATORS[:2])))) == [
        "missing-storage-receipts"
    ]


def test_a_missing_reveal_burns_the_bond_and_refunds_the_user() -> None:
    world = World()
    adapter = world.active_adapter()
    name = world.drawn(adapter)
    supply, others = get_supply(world.state), [world.balance(other) for other in VALIDATORS]
    assert supply.bonded == PARAMS.provider_bond_min
    world.until(name, InferenceStatus.SLASHED)
    inference = world.inference(name)
    assert inference.bond_burned == PARAMS.provider_bond_min
    after = get_supply(world.state)
    assert (after.burned, after.bonded, after.escrowed) == (PARAMS.provider_bond_min, 0, 0)
    assert after.total == supply.total - PARAMS.provider_bond_min == world.accounted()
    assert world.balance("user") == BALANCE
    assert [world.balance(other) for other in VALIDATORS] == others  # nobody profits from a slash
    assert world.submit("provider", world.record_body(world.voucher(adapter, 2))).code == "bond-too-low"
    world.accept("provider", ProviderBond(PARAMS.provider_bond_min, "back"))
    world.record(adapter, 2)


def test_a_deadline_needs_heights_and_milliseconds() -> None:
    world = World()
    name = world.drawn(world.active_adapter())
    deadline_ms = world.inference(name).deadline_ms
    while world.now_ms + 10 < deadline_ms and world.height < 100:
        world.block(context=world.context(step_ms=10))
        assert world.inference(name).status == InferenceStatus.AWAITING_REVEAL
    quick = World()
    name = quick.drawn(quick.active_adapter())
    quick.block(context=quick.context(step_ms=10**6))
    assert quick.inference(name).status == InferenceStatus.AWAITING_REVEAL
    quick.until(name, InferenceStatus.SLASHED)
    assert quick.height == quick.inference(name).deadline_height


def test_an_overlay_reads_its_own_writes_and_leaves_its_base_alone() -> None:
    base = {b"a": b"1", b"b": b"2"}
    overlay = Overlay(base)
    overlay.put(b"a", b"9")
    overlay.delete(b"b")
    assert (overlay.get(b"a"), overlay.get(b"b"), base) == (b"9", None, {b"a": b"1", b"b": b"2"})


def test_a_user_who_spent_its_balance_cannot_be_charged() -> None:
    world = World()
    adapter = world.active_adapter()
    body = world.record_body(world.voucher(adapter))
    world.accept("user", Transfer(address("ann"), world.balance("user") - OPEN // 2))
    assert world.balance("user") < OPEN
    assert world.submit("provider", body).code == "insufficient-balance"
