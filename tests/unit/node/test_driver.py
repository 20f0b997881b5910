"""The driver with a scripted replica: order of inputs, order of effects, what is lost and what never is."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import trio
import trio.testing

from consensus.effects import Deliver, Effect, Persist, RequestPayload, Send, SetTimer
from consensus.inputs import (
    Input,
    MessageReceived,
    PayloadOffered,
    PayloadPending,
    Started,
    TimerFired,
    TimerKind,
)
from consensus.messages import SyncMessage, VoteMessage, encode_message
from consensus.replica import Replica
from consensus.safety import ForeignSignature
from consensus.types import SyncInfo, Vote, genesis_block, genesis_qc
from node import driver as driver_module
from node.clock import now_ms
from node.driver import Driver, DriverPorts
from node.storage.chain import ChainStore
from node.storage.errors import SigningKeyElsewhere

GENESIS = genesis_block(b"c" * 32, b"s" * 32)
MESSAGE = SyncMessage(SyncInfo(genesis_qc(GENESIS), None, None))


class Script:
    """Answers inputs with prepared effects and records both, together with what the ports saw."""

    def __init__(self, answer: Callable[[Input], list[Effect]]) -> None:
        self.answer = answer
        self.foreign_signature: ForeignSignature | None = None
        self.inputs: list[Input] = []
        self.done: list[object] = []

    def step(self, event: Input) -> list[Effect]:
        self.inputs.append(event)
        return self.answer(event)

    def disown(self, found: ForeignSignature) -> None:
        self.done.append(("disown", found))

    def persist(self, effect: Persist) -> None:
        self.done.append("persist synced" if effect.sync else "persist")


def persist(*, sync: bool) -> Persist:
    return Persist(
        sync=sync,
        record=b"r",
        certificates=None,
        blocks=(),
        committed=(),
        proof=None,
        reveals=(),
        forgotten=(),
    )


def make(script: Script, listen_ms: int = 0, block_interval_ms: int = 0) -> Driver:
    ports = DriverPorts(
        send=lambda to, message: script.done.append(("send", to, message)),
        deliver=lambda blocks: script.done.append(("deliver", blocks)),
        offer_payload=lambda request: (b"d" * 32,),
        fetch_payload=script.done.append,
        fetch_block=script.done.append,
        behind=script.done.append,
        misbehaved=script.done.append,
        help_epoch=lambda effect: None,
    )
    return Driver(
        cast("Replica", script),
        cast("ChainStore", script),
        ports,
        listen_ms=listen_ms,
        block_interval_ms=block_interval_ms,
    )


def run(driver: Driver, until: Callable[[], bool]) -> None:
    async def main() -> None:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(driver.run)
                while not until():
                    await trio.testing.wait_all_tasks_blocked(0.005)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_effects_are_performed_in_the_order_persist_send_deliver() -> None:
    def answer(event: Input) -> list[Effect]:
        if isinstance(event, Started):
            return [persist(sync=True), Send(None, MESSAGE), Deliver((GENESIS,), cast("Any", None))]
        return []

    script = Script(answer)
    run(make(script), lambda: len(script.done) == 3)
    assert script.done == ["persist synced", ("send", None, encode_message(MESSAGE)), ("deliver", (GENESIS,))]


def test_nothing_is_sent_when_the_record_could_not_be_written() -> None:
    class Full(Script):
        def persist(self, effect: Persist) -> None:
            raise OSError(28, "No space left on device")

    script = Full(lambda event: [persist(sync=True), Send(None, MESSAGE)])
    with pytest.raises(BaseExceptionGroup) as caught:
        run(make(script), lambda: False)
    assert caught.group_contains(OSError)
    assert script.done == []


def test_a_request_for_payload_is_answered_through_the_replica() -> None:
    script = Script(
        lambda event: [RequestPayload(7, b"p" * 32, (), False)] if isinstance(event, Started) else []
    )
    run(make(script), lambda: len(script.inputs) == 2)
    offered = script.inputs[1]
    assert isinstance(offered, PayloadOffered)
    assert (offered.round, offered.digests) == (7, (b"d" * 32,))


def test_this_nodes_own_inputs_go_before_peers_messages() -> None:
    script = Script(lambda event: [])
    driver = make(script)
    driver.offer(MessageReceived(None, MESSAGE, 1))
    driver.tell(PayloadPending(True, 2))
    run(driver, lambda: len(script.inputs) == 3)
    assert [type(event) for event in script.inputs] == [Started, PayloadPending, MessageReceived]


def test_a_timer_waits_for_the_messages_that_arrived_before_it_was_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver_module, "now_ms", lambda: 1000)
    script = Script(lambda event: [SetTimer(TimerKind.ROUND, 500)] if isinstance(event, Started) else [])
    driver = make(script)
    driver.offer(MessageReceived(None, MESSAGE, 400))
    driver.offer(MessageReceived(None, MESSAGE, 600))
    run(driver, lambda: len(script.inputs) == 4)
    assert [type(event) for event in script.inputs] == [Started, MessageReceived, TimerFired, MessageReceived]


def test_a_timer_fires_when_due_and_only_once() -> None:
    def answer(event: Input) -> list[Effect]:
        return [SetTimer(TimerKind.PROPOSE, now_ms() + 30)] if isinstance(event, Started) else []

    script = Script(answer)
    run(make(script), lambda: len(script.inputs) == 2)
    fired = script.inputs[1]
    assert isinstance(fired, TimerFired)
    assert fired.kind is TimerKind.PROPOSE


def test_peers_messages_are_dropped_past_the_bound_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "PEER_INPUTS_MAX", 2)
    driver = make(Script(lambda event: []))
    assert [driver.offer(MessageReceived(None, MESSAGE, 1)) for _ in range(4)] == [True, True, False, False]
    assert driver.peer_inputs_dropped == 2


def test_a_flood_of_inputs_leaves_the_other_tasks_their_turns() -> None:
    script = Script(lambda event: [])
    driver = make(script)
    taken_between: list[int] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(500):
                driver.offer(MessageReceived(None, MESSAGE, 0))
            nursery.start_soon(driver.run)
            while len(script.inputs) < 500:
                before = len(script.inputs)
                await trio.lowlevel.checkpoint()
                taken_between.append(len(script.inputs) - before)
            nursery.cancel_scope.cancel()

    trio.run(main)
    # Trio draws the order within a round of turns: the driver's may come last in one and first in the next.
    assert max(taken_between) <= 2 * driver_module.INPUTS_AT_ONCE_MAX


def test_who_waits_for_an_input_goes_on_once_its_effects_are_done() -> None:
    script = Script(
        lambda event: (
            [persist(sync=True), Deliver((GENESIS,), cast("Any", None))]
            if isinstance(event, PayloadPending)
            else []
        )
    )
    driver = make(script)
    seen: list[list[object]] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.run)
            with trio.fail_after(10):
                await driver.tell_and_wait(PayloadPending(True, 2))
            seen.append(list(script.done))
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert seen == [["persist synced", ("deliver", (GENESIS,))]]


# --- a key that is used elsewhere ---


def test_a_signature_of_our_key_that_we_did_not_make_ends_the_daemon_before_anything_is_written_or_sent() -> (
    None
):
    found = ForeignSignature("vote", 9, 4)

    def answer(event: Input) -> list[Effect]:
        if isinstance(event, MessageReceived):
            script.foreign_signature = found
            return [persist(sync=True), Send(None, MESSAGE)]
        return []

    script = Script(answer)
    driver = make(script)
    driver.offer(MessageReceived(None, MESSAGE, 1))
    with pytest.raises(BaseExceptionGroup) as caught:
        run(driver, lambda: False)
    assert caught.group_contains(SigningKeyElsewhere, match="a vote of round 9 .* ends at round 4")
    assert script.done == [("disown", found)]


def starts_everything(event: Input) -> list[Effect]:
    if not isinstance(event, Started):
        return []
    timers: list[Effect] = [SetTimer(kind, event.now_ms) for kind in TimerKind]
    return [*timers, RequestPayload(7, b"p" * 32, (), False)]


def test_a_validator_first_listens_and_starts_nothing() -> None:
    script = Script(starts_everything)
    driver = make(script, listen_ms=200)
    driver.offer(MessageReceived(None, MESSAGE, 1))
    run(driver, lambda: len(script.inputs) == 6)
    began = script.inputs[0].now_ms
    quiet = [event for event in script.inputs if event.now_ms < began + 200]
    assert [type(event) for event in quiet] == [Started, MessageReceived, TimerFired]
    assert isinstance(quiet[2], TimerFired)
    assert quiet[2].kind is TimerKind.FETCH
    assert [type(event) for event in script.inputs[3:]] == [PayloadOffered, TimerFired, TimerFired]


VOTE = VoteMessage(Vote(0, 6, b"b" * 32, b"p" * 32, 5, b"a" * 32, b"s" * 64))


@pytest.mark.parametrize("interval_ms", [0, 150])
def test_a_leader_offers_its_payload_no_sooner_than_the_interval_after_its_vote(interval_ms: int) -> None:
    def vote_then_lead(event: Input) -> list[Effect]:
        if not isinstance(event, MessageReceived):
            return []
        return [Send(None, VOTE), RequestPayload(7, b"p" * 32, (), False), SetTimer(TimerKind.ROUND, 1)]

    script = Script(vote_then_lead)
    driver = make(script, block_interval_ms=interval_ms)
    driver.offer(MessageReceived(None, MESSAGE, 1))
    before = now_ms()
    run(driver, lambda: len(script.inputs) == 4)
    # The vote has gone and the round's timer fires meanwhile: the payload alone waits.
    order = [type(event) for event in script.inputs[2:]]
    assert order == ([TimerFired, PayloadOffered] if interval_ms else [PayloadOffered, TimerFired])
    (offered,) = (event for event in script.inputs if isinstance(event, PayloadOffered))
    assert offered.round == 7
    assert offered.now_ms - before >= interval_ms
    assert script.done[0] == ("send", None, encode_message(VOTE))


def test_after_a_pause_of_the_chain_a_leader_waits_for_nothing() -> None:
    def lead(event: Input) -> list[Effect]:
        return [RequestPayload(7, b"p" * 32, (), False)] if isinstance(event, MessageReceived) else []

    script = Script(lead)
    driver = make(script, block_interval_ms=500)
    driver.offer(MessageReceived(None, MESSAGE, 1))
    before = now_ms()
    run(driver, lambda: len(script.inputs) == 3)
    assert isinstance(script.inputs[2], PayloadOffered)
    assert script.inputs[2].now_ms - before < 400
