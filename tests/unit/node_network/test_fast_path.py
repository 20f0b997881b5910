"""The replaced parts of libp2p's connection: what arrives is what was sent, and a frame takes few turns."""

from __future__ import annotations

import os
import socket
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError
from libp2p.io.trio import TrioTCPStream

from node.network import fast_path
from node.network.fast_path import READS_AT_ONCE_MAX, Arrived, Prompt, PromptLock
from tests.profiles import examples
from tests.unit.node_network.cluster import open_mesh, receive_payloads, run_trio

TURNS_MAX = 7
"""Of both ends, for one frame sent alone; as libp2p comes it takes 15 and more."""


class Secured:
    """What was decrypted before, as a `SecureSession` gives it away."""

    def __init__(self, left: bytes) -> None:
        self._left = left

    def _drain(self, _: None) -> bytes:
        return self._left


class Mirror:
    """A cipher that turns bytes round, so that what was not decrypted, or twice, shows."""

    def __init__(self) -> None:
        self.encrypted = 0

    def encrypt(self, data: bytes) -> bytes:
        self.encrypted += 1
        return data[::-1]

    def decrypt(self, data: bytes) -> bytes:
        return data[::-1]


class Socket:
    """Gives pieces, then an end or a fault."""

    def __init__(self, pieces: list[bytes], fault: Exception | None = None) -> None:
        self._pieces = deque(pieces)
        self._fault = fault

    async def receive_some(self, _: int) -> bytes:
        if self._pieces:
            return self._pieces.popleft()
        if self._fault is not None:
            raise self._fault
        return b""


def arrived(left: bytes, pieces: list[bytes], fault: Exception | None = None) -> Arrived:
    secured: Any = Secured(left)
    noise: Any = Mirror()
    return Arrived(secured, noise, Socket(pieces, fault).receive_some)


@settings(max_examples=examples(60))
@given(
    left=st.binary(max_size=20),
    messages=st.lists(st.binary(max_size=40), max_size=8),
    cuts=st.lists(st.integers(1, 30), max_size=40),
    sizes=st.lists(st.integers(1, 25), max_size=60),
)
def test_what_is_read_is_what_was_written_however_it_is_cut(
    left: bytes, messages: list[bytes], cuts: list[int], sizes: list[int]
) -> None:
    cipher = b"".join(len(message).to_bytes(2, "big") + message[::-1] for message in messages)
    pieces = []
    for size in cuts:
        pieces.append(cipher[:size])
        cipher = cipher[size:]
    pieces = [piece for piece in (*pieces, cipher) if piece]
    whole = left + b"".join(messages)

    async def main() -> None:
        inbox, read = arrived(left, pieces), b""
        for size in sizes:
            if len(read) + size > len(whole):
                with pytest.raises(IncompleteReadError):
                    await inbox.read(size)
                break
            read += await inbox.read(size)
        assert whole.startswith(read)

    run_trio(main)


def test_the_end_inside_a_message_and_a_reset_are_told_apart_from_data() -> None:
    async def main() -> None:
        inbox = arrived(b"", [b"\x00\x05abc"])
        with pytest.raises(IncompleteReadError) as cut:
            await inbox.read(3)
        assert cut.value.is_clean_close
        inbox = arrived(b"xy", [], trio.BrokenResourceError())
        assert await inbox.read(1) == b"x"
        with pytest.raises(ConnectionClosedError):
            await inbox.read(2)
        with pytest.raises(IncompleteReadError) as closed:
            await arrived(b"x", [], trio.ClosedResourceError()).read(2)
        assert not closed.value.is_clean_close

    run_trio(main)


def test_nothing_is_taken_before_all_of_it_is_here() -> None:
    async def main() -> None:
        inbox = arrived(b"ab", [b"\x00\x02dc"])
        assert inbox.take(3) is None
        assert await inbox.read(3) == b"abc"
        assert inbox.take(1) == b"d"
        assert inbox.take(1) is None

    run_trio(main)


def test_a_flood_of_small_frames_leaves_the_other_tasks_their_turns() -> None:
    async def main() -> None:
        inbox, reads, between = arrived(bytes(1000), []), 0, []

        async def flooded() -> None:
            nonlocal reads
            for _ in range(1000):
                await inbox.read(1)
                reads += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flooded)
            while reads < 1000:
                before = reads
                await trio.lowlevel.checkpoint()
                between.append(reads - before)
        # Trio draws the order within a round of turns: the reader's may come last in one and first in the next.
        assert max(between) <= 2 * READS_AT_ONCE_MAX

    run_trio(main)


def test_a_prompt_lock_keeps_others_out_and_gives_no_turn_away() -> None:
    async def main() -> None:
        lock, inside, most = PromptLock(), 0, 0

        async def visit() -> None:
            nonlocal inside, most
            async with lock:
                inside += 1
                most = max(most, inside)
                await trio.lowlevel.checkpoint()
                inside -= 1

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(visit)
        assert most == 1
        turns = Turns()
        trio.lowlevel.add_instrument(turns)
        async with lock:
            pass
        trio.lowlevel.remove_instrument(turns)
        assert turns.count == 0

    run_trio(main)


def stream_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    ours, theirs = map(trio.socket.from_stdlib_socket, socket.socketpair())
    return trio.SocketStream(ours), trio.SocketStream(theirs)


def writer_to(stream: trio.SocketStream) -> tuple[Prompt, Mirror, Any]:
    cipher = Mirror()
    muxer: Any = SimpleNamespace(_write_lock=PromptLock(), secured_conn=SimpleNamespace(conn=cipher))
    tcp = TrioTCPStream(stream)
    tcp.write_lock = PromptLock()
    return Prompt(muxer, tcp), cipher, muxer


def test_a_frame_that_the_socket_takes_in_part_arrives_whole_and_before_the_next() -> None:
    async def main() -> None:
        ours, theirs = stream_pair()
        writer, _, _ = writer_to(ours)
        written, rest = b"", b""
        for _ in range(200):
            if rest:  # the socket is full
                break
            frame = bytes([len(written) >> 16 & 0xFF]) * 60_000
            left = writer.write(frame)
            assert left is not None
            written, rest = written + frame, left
        assert rest
        inbox = Arrived(Secured(b""), Mirror(), fast_path.Socket(theirs).receive_some)
        async with trio.open_nursery() as nursery:

            async def go_on() -> None:
                await writer.finish(rest)
                assert writer.write(b"next") == b""

            nursery.start_soon(go_on)
            assert await inbox.read(len(written)) == written
            assert await inbox.read(4) == b"next"
        await ours.aclose()
        await theirs.aclose()

    run_trio(main)


def test_while_somebody_writes_nothing_is_encrypted_or_written() -> None:
    async def main() -> None:
        ours, theirs = stream_pair()
        writer, cipher, muxer = writer_to(ours)
        async with muxer._write_lock:
            assert writer.write(b"between") is None
        assert cipher.encrypted == 0
        assert writer.write(b"after") == b""
        assert await theirs.receive_some(100) == b"\x00\x05retfa"
        await ours.aclose()
        assert (
            writer.write(b"too late") is not None
        )  # left for `finish`, which learns that the socket is closed
        await theirs.aclose()

    run_trio(main)


def test_a_reader_never_reads_a_socket_that_took_over_its_number() -> None:
    async def main() -> None:
        closed = 0
        for _ in range(40):
            ours, theirs = stream_pair()
            signal, signalled = stream_pair()
            heard: list[bytes] = []
            later: list[socket.socket] = []

            async def read(stream: trio.SocketStream = ours, heard: list[bytes] = heard) -> None:
                try:
                    heard.append(await fast_path.Socket(stream).receive_some(100))
                except trio.ClosedResourceError:
                    heard.append(b"closed")

            async def take_over(
                stream: trio.SocketStream = ours,
                signalled: trio.SocketStream = signalled,
                later: list[socket.socket] = later,
            ) -> None:
                await fast_path.Socket(signalled).receive_some(1)
                stream.socket.close()
                later += socket.socketpair()
                for end in later:
                    end.send(b"another's")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(take_over)
                await trio.testing.wait_all_tasks_blocked()
                # Both are woken in one round, in an order that trio draws.
                os.write(theirs.socket.fileno(), b"ours")
                os.write(signal.socket.fileno(), b"!")
            assert heard in ([b"ours"], [b"closed"])
            closed += heard == [b"closed"]
            for stream in (theirs, signal, signalled):
                await stream.aclose()
            for end in later:
                end.close()
        assert closed

    run_trio(main)


class Turns(trio.abc.Instrument):
    """Counts how often a task is resumed."""

    count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


def test_a_free_lock_is_taken_without_a_turn_for_others() -> None:
    async def main() -> None:
        lock, order = PromptLock(), list[str]()

        async def other() -> None:
            order.append("other")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(10):
                async with lock:
                    pass
            order.append("first")
        assert order == ["first", "other"]

    run_trio(main)


def test_a_frame_takes_few_turns_of_the_scheduler() -> None:
    async def main() -> None:
        async with open_mesh(2) as ((sender, receiver), _, _):
            sender.network.broadcast(1, b"first")
            assert await receive_payloads(receiver, 1) == [b"first"]
            turns, frames = Turns(), 50
            trio.lowlevel.add_instrument(turns)
            for number in range(frames):
                sender.network.broadcast(1, b"%d" % number)
                assert await receive_payloads(receiver, 1) == [b"%d" % number]
            trio.lowlevel.remove_instrument(turns)
            assert turns.count <= TURNS_MAX * frames

    run_trio(main)
