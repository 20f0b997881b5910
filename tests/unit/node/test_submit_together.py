"""Transactions that come together: admitted a group at a time, passed on in one frame, answered each for itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from node.config import MempoolSection
from node.errors import MempoolFull, NotReady
from node.intake import ADMITTED_AT_ONCE
from node.ledger.bodies import Transfer
from node.ledger.errors import InvalidTransactionError, MalformedError
from node.mempool import Mempool
from node.rpc.methods import METHODS
from node.rpc.protocol import answer
from node.wire import Frame, decode_transactions
from tests.unit.node.ledger_backend import LedgerBackend
from tests.unit.node.rooms import Room, run, with_rooms
from tests.unit.node_ledger.world import address


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room("val0", tmp_path)
    yield made
    made.close()


def transfers(room: Room, count: int) -> list[bytes]:
    return [room.tx("ann", Transfer(address("ben"), 1), nonce=nonce) for nonce in range(count)]


def test_many_are_admitted_in_order_without_a_thread_and_passed_on_in_one_frame(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread would wait for Python's lock after each signature (docs/adr/023)."""
    visits: list[int] = []
    real = trio.to_thread.run_sync

    async def counted(*args: object, **options: object) -> object:
        visits.append(1)
        return await real(*args, **options)  # type: ignore[arg-type]

    rows = transfers(room, 20)

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(trio.to_thread, "run_sync", counted)
            taken = await room.intake.submit_many(rows)
        assert taken == [room.hash(raw) for raw in rows]
        assert [pooled.raw for pooled in room.mempool] == rows
        assert visits == []
        frames = [data for kind, data in room.loopback.frames if kind == Frame.TRANSACTIONS]
        assert [decode_transactions(data) for data in frames] == [rows]

    run(main)


def test_what_a_caller_who_left_had_admitted_is_passed_on_by_repetition(room: Room) -> None:
    rows = transfers(room, 6 * ADMITTED_AT_ONCE)

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(room.intake.submit_many, rows)
                while not len(room.mempool):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        assert 0 < len(room.mempool) < len(rows)
        assert room.loopback.frames == []
        assert set(room.intake._own) == {pooled.tx_hash for pooled in room.mempool}

    run(main)


def test_each_of_many_is_answered_for_itself_and_only_what_was_taken_is_passed_on(tmp_path: Path) -> None:
    room = Room("val0", tmp_path, limits=MempoolSection(transactions_max=3))
    first, second, third, fourth = transfers(room, 4)
    forged = room.tx("ben", Transfer(address("ann"), 1))
    forged = forged[:-1] + bytes([forged[-1] ^ 1])

    async def main() -> None:
        taken = await room.intake.submit_many([first, b"garbage", forged, first, second, third, fourth])
        assert [type(row) for row in taken] == [
            bytes,
            MalformedError,
            InvalidTransactionError,
            bytes,
            bytes,
            bytes,
            MempoolFull,
        ]
        assert [pooled.raw for pooled in room.mempool] == [first, second, third]
        (frame,) = [data for kind, data in room.loopback.frames if kind == Frame.TRANSACTIONS]
        assert sorted(set(decode_transactions(frame))) == sorted([first, second, third])
        assert await room.intake.submit_many([first]) == [room.hash(first)]
        assert len(room.loopback.frames) == 1

    run(main)
    room.close()


def test_what_was_submitted_here_is_forgotten_once_it_is_executed(room: Room) -> None:
    rows = transfers(room, 3)

    async def body() -> None:
        await room.intake.submit_many(rows)
        assert set(room.intake._own) == {room.hash(raw) for raw in rows}
        await room.order(room.batch(1, *rows))
        assert room.intake._own == {}

    run(lambda: with_rooms([room], body))


# --- the RPC ---


def submit(raw: object, identity: object = 1) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": identity, "method": "tx_submit", "params": {"tx": raw}}


def ask(backend: LedgerBackend, requests: list[object], batch_max: int = 100) -> list[dict[str, object]]:
    seen: list[tuple[str, str]] = []

    async def main() -> bytes | None:
        body = json.dumps(requests).encode()
        return await answer(
            body, METHODS, backend, batch_max, 10**6, lambda method, code, _: seen.append((method, code))
        )

    answered = trio.run(main)
    assert len(seen) == len(requests)
    return [] if answered is None else list(json.loads(answered))


def test_a_batch_of_submissions_answers_as_the_same_calls_do_one_by_one() -> None:
    def requests(backend: LedgerBackend) -> list[object]:
        good = [backend.world.tx("ann", Transfer(address("ben"), 1), nonce=nonce).hex() for nonce in range(3)]
        return [
            submit(good[0], "a"),
            submit("zz", 2),
            submit("00", 3),
            {"jsonrpc": "1.0", "id": 4, "method": "tx_submit", "params": {"tx": good[1]}},
            {"jsonrpc": "2.0", "method": "tx_submit", "params": {"tx": good[1]}},
            {"jsonrpc": "2.0", "id": 5, "method": "supply"},
            submit(good[2], 6),
            submit(good[0], 7),
            {"jsonrpc": "2.0", "id": 8, "method": "tx_submit", "params": {"tx": good[0], "more": 1}},
            {"jsonrpc": "2.0", "id": [], "method": "tx_submit", "params": {"tx": good[0]}},
            7,
        ]

    together = LedgerBackend()
    alone = LedgerBackend()
    expected = [row for request in requests(alone) for row in ask(alone, [request])]
    assert ask(together, requests(together)) == expected
    assert together.pending == alone.pending
    assert len(together.pending) == 3


def test_submissions_that_follow_one_another_reach_the_node_together(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, groups = LedgerBackend(), []
    real = backend.submit_transactions

    async def noted(raws: list[bytes]) -> list[bytes | Exception]:
        groups.append(len(raws))
        return await real(raws)

    monkeypatch.setattr(backend, "submit_transactions", noted)
    rows = [backend.world.tx("ann", Transfer(address("ben"), 1), nonce=nonce).hex() for nonce in range(80)]
    answers = ask(backend, [submit(raw, at) for at, raw in enumerate(rows)])
    assert [row["id"] for row in answers] == list(range(80))
    assert groups == [64, 16]
    assert list(backend.pending.values()) == [bytes.fromhex(raw) for raw in rows[: len(backend.pending)]]


def test_a_node_that_takes_nothing_says_so_to_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = LedgerBackend()

    async def unready(raws: list[bytes]) -> list[bytes | Exception]:
        raise NotReady("it differs")

    monkeypatch.setattr(backend, "submit_transactions", unready)
    raw = backend.world.tx("ann", Transfer(address("ben"), 1)).hex()
    answers = ask(backend, [submit(raw, at) for at in range(3)])
    codes = {row["error"]["code"] for row in answers if isinstance(row["error"], dict)}
    assert len(answers) == 3
    assert len(codes) == 1


# --- the pool's books ---


def test_a_pool_that_is_not_full_never_works_out_what_lines_are_worth(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line is walked to price it; doing so for each of its transactions made a line of n cost n * n."""
    priced: list[int] = []
    monkeypatch.setattr(Mempool, "_put_in_order", lambda self: priced.append(1))
    monkeypatch.setattr("node.mempool.Line.worth", property(lambda line: priced.append(1)))
    run(lambda: _submit(room, transfers(room, 50)))
    assert len(room.mempool) == 50
    assert priced == []


async def _submit(room: Room, rows: list[bytes]) -> None:
    await room.intake.submit_many(rows)


def test_a_block_looks_only_at_the_lines_of_the_accounts_that_it_changed(room: Room) -> None:
    async def body() -> None:
        await room.intake.submit_many([room.tx(name, Transfer(address("cid"), 1)) for name in ("ann", "ben")])
        asked: list[bytes] = []

        def next_nonce(sender: bytes) -> int:
            asked.append(sender)
            return 0

        assert room.mempool.settle((), next_nonce, 1, [address("ann"), address("cid")]) == []
        assert asked == [address("ann")]

    run(body)


def test_the_pools_memory_of_expiries_is_bounded_however_often_one_is_replaced(room: Room) -> None:
    async def body() -> None:
        fee = 10**6
        for _ in range(200):
            fee += fee // 10 + 1
            if fee > 10**9:
                room.mempool.discard(next(iter(room.mempool)).tx_hash)
                fee = 10**6
            await room.intake.submit_many([room.tx("ann", Transfer(address("ben"), 1), fee=fee)])
        assert len(room.mempool) == 1
        assert len(room.mempool._expiries) <= 66

    run(body)
