"""``GET /events``: what executed blocks hold, as server-sent events (the HTML standard's text/event-stream).

Events are read from the chain itself: a subscriber is a position in it and nothing else, so a resume is exact, a slow
client delays nobody, and nothing is queued for it. Each event's id is ``HEIGHT-INDEX``, whatever the filter.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import trio

from node.rpc import views
from node.rpc.backend import Backend, BlockView
from node.rpc.errors import Code, Fault, invalid_param

BLOCKS_REMEMBERED_MAX = 8
"""Blocks whose events are kept for subscribers who ask for the same at about the same time."""

HEARTBEAT_S = 15.0
"""A quiet stream says so often that it is alive, and how far it has come."""

WRITE_BYTES_MAX = 64 * 1024
RETRY_MS = 2000
KINDS = ("block", "transaction", "receipt")

_EVENTS_BETWEEN_CHECKPOINTS = 100
_FILTERS = ("types", "hash", "sender", "status", "subject")
_POSITION = re.compile(r"(0|[1-9][0-9]{0,17})(?:-(0|[1-9][0-9]{0,8}))?")
_HASH = re.compile(r"[0-9a-f]{64}")
_HEX = re.compile(r"(?:[0-9a-f]{2}){1,64}")
_WORD = re.compile(r"[a-z][a-z-]{0,63}")

Write = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """How far a subscriber has come: through event ``index`` of block ``height``, which is -1 before the block's first."""

    height: int
    index: int

    def __str__(self) -> str:
        return f"{self.height}-{self.index}" if self.index >= 0 else f"{self.height - 1}"


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """One event: its kind, the members that filters look at, and what is sent for it."""

    index: int
    kind: str
    members: Mapping[str, str]
    data: bytes


@dataclass(frozen=True, slots=True)
class Filter:
    """What a subscriber wants: its ``kinds``, and events that have all of ``members``."""

    kinds: frozenset[str]
    members: Mapping[str, str]

    def wants(self, event: FeedEvent) -> bool:
        """Whether the event passes. One that lacks a member that is asked for does not."""
        return event.kind in self.kinds and all(
            event.members.get(name) == value for name, value in self.members.items()
        )


def read_filter(query: Iterable[tuple[str, str]]) -> tuple[Filter, Position | None]:
    """Return the filter of a query string, and where it says to start (``after``); raises `Fault` INVALID_PARAMS."""
    given: dict[str, str] = {}
    for name, value in query:
        if name in given:
            raise invalid_param(name[:64], "each parameter at most once")
        given[name] = value
    for name in given:
        if name not in (*_FILTERS, "after"):
            raise invalid_param(name[:64], f"only {', '.join((*_FILTERS, 'after'))}")
    kinds = frozenset(given.pop("types", ",".join(KINDS)).split(","))
    if not kinds <= frozenset(KINDS):
        raise invalid_param("types", f"a list of {', '.join(KINDS)}, separated by commas")
    after = given.pop("after", None)
    for name, value in given.items():
        pattern, expected = {
            "hash": (_HASH, "64 lowercase hex digits"),
            "sender": (_HASH, "64 lowercase hex digits"),
            "subject": (_HEX, "lowercase hex"),
            "status": (_WORD, "ok, failed, invalid, or the code of a receipt"),
        }[name]
        if not pattern.fullmatch(value):
            raise invalid_param(name, expected)
    return Filter(kinds, given), None if after is None else read_position(after, "after")


def read_position(text: str, name: str) -> Position:
    """Parse ``HEIGHT`` (the whole block) or ``HEIGHT-INDEX``; raises `Fault` INVALID_PARAMS."""
    match = _POSITION.fullmatch(text)
    if match is None:
        raise invalid_param(name, "HEIGHT or HEIGHT-INDEX, as in an event's id")
    height = int(match[1])
    return Position(height + 1, -1) if match[2] is None else Position(height, int(match[2]))


class Feed:
    """The subscribers of one server."""

    def __init__(self, backend: Backend, subscribers_max: int, resume_blocks_max: int) -> None:
        self._backend = backend
        self._subscribers_max = subscribers_max
        self._resume_blocks_max = resume_blocks_max
        self._blocks: OrderedDict[int, tuple[FeedEvent, ...]] = OrderedDict()
        self.subscribers = 0

    def join(self, after: Position | None) -> Position:
        """Take a subscriber's place and return where it starts; `leave` gives the place back.

        Raises `Fault` SERVER_BUSY when all places are taken, INVALID_PARAMS for a position that the chain is far from.
        """
        if self.subscribers >= self._subscribers_max:
            data: dict[str, object] = {"limit": self._subscribers_max, "unit": "subscribers"}
            raise Fault(Code.SERVER_BUSY, f"over {self._subscribers_max} subscribers; try again", data)
        head = self._backend.status().height
        if after is not None and after.height > head + self._resume_blocks_max + 1:
            raise invalid_param("after", f"a position of this chain, which is at height {head}")
        self.subscribers += 1
        return Position(head + 1, -1) if after is None else after

    def leave(self) -> None:
        """Give a subscriber's place back."""
        self.subscribers -= 1

    async def follow(self, start: Position, wanted: Filter, write: Write) -> None:
        """Write the events after ``start`` for ever, in their order.

        Who asks for more than ``resume_blocks_max`` blocks back, or falls so far behind, gets an event ``gap`` that names
        the blocks that are left out, and goes on after them.
        """
        at = start
        await write(b"retry: %d\n: OpenLedger events\n\n" % RETRY_MS)
        while True:
            with trio.move_on_after(HEARTBEAT_S) as waiting:
                head = await self._backend.wait_executed(at.height - 1)
            if waiting.cancelled_caught:
                await write(b": heartbeat\nid: %b\n\n" % str(at).encode())
                continue
            oldest = head - self._resume_blocks_max + 1
            if at.height < oldest:
                await write(_gap(at, oldest))
                at = Position(oldest, -1)
            await self._send_block(at, wanted, write)
            at = Position(at.height + 1, -1)

    async def _send_block(self, at: Position, wanted: Filter, write: Write) -> None:
        """Write what an executed block has after the position."""
        events = await self._events(at.height)
        if events is None:
            await write(_gap(at, at.height + 1))
            return
        piece = bytearray()
        for event in events:
            if event.index <= at.index or not wanted.wants(event):
                continue
            if piece and len(piece) + len(event.data) > WRITE_BYTES_MAX:
                await write(bytes(piece))
                piece.clear()
            piece += event.data
        if piece:
            await write(bytes(piece))

    async def _events(self, height: int) -> tuple[FeedEvent, ...] | None:
        known = self._blocks.get(height)
        if known is not None:
            return known
        block = self._backend.block(height)
        if block is None:
            return None
        events: list[FeedEvent] = []
        for event in _events_of(block):
            events.append(event)
            if len(events) % _EVENTS_BETWEEN_CHECKPOINTS == 0:
                await trio.lowlevel.checkpoint()
        self._blocks[height] = made = tuple(events)
        while len(self._blocks) > BLOCKS_REMEMBERED_MAX:
            self._blocks.popitem(last=False)
        return made


def last_event(reason: str) -> bytes:
    """The event that says that no more will come, and why."""
    return _encode("end", None, {"reason": reason})


def _events_of(block: BlockView) -> Iterator[FeedEvent]:
    """A block's events in their order: the block, its transactions, the ledger's own steps."""
    rows: list[tuple[str, Mapping[str, str], object]] = [("block", {}, views.block_event(block))]
    for transaction in block.transactions:
        shown = views.transaction_event(transaction, block.height)
        members: dict[str, str] = {"hash": shown["tx_hash"], "status": shown["status"]}
        if shown["sender"] is not None:
            members["sender"] = shown["sender"]
        rows.append(("transaction", members, shown))
    for receipt in block.events:
        step = views.receipt_event(receipt, block.height)
        rows.append(("receipt", {"subject": step["subject"], "status": step["status"]}, step))
    for index, (kind, shown_members, data) in enumerate(rows):
        yield FeedEvent(index, kind, shown_members, _encode(kind, Position(block.height, index), data))


def _gap(at: Position, resumed: int) -> bytes:
    """The event that says that the blocks from the position up to ``resumed`` are left out."""
    return _encode("gap", Position(resumed, -1), {"after": str(at), "resumed_height": resumed})


def _encode(kind: str, position: Position | None, data: object) -> bytes:
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    identity = "" if position is None else f"id: {position}\n"
    return f"event: {kind}\n{identity}data: {text}\n\n".encode("ascii")
