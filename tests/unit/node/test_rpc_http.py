"""HTTP/1.1 on one connection: what is asked is answered once and in order, however it is cut, and faults stay where they are."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from contextlib import suppress

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from node.rpc import http as http_module
from node.rpc.http import Connection, Message, Patience, Receive, Scope, Send
from tests.profiles import examples

REQUESTS = (
    b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\nhello\r\n\r\nx!",
    b"POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n",
    b"POST /d HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n   ",
)
SAID = [b"GET /a 0", b"POST /b 11", b"POST /c 6", b"POST /d 3"]


async def respond(send: Send, body: bytes, status: int = 200) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Says how long the body was, which it reads; of paths below /unread it does not."""
    size, more = 0, not scope["path"].startswith("/unread")
    while more:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            await respond(send, b"gone", 400)
            return
        size, more = size + len(message["body"]), message["more_body"]
    await respond(send, f"{scope['method']} {scope['path']} {size}".encode())


async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
    raise LookupError("a secret of this machine")


def exchange(pieces: Sequence[bytes], app: http_module.App = echo, *, idle_s: float = 5.0) -> bytes:
    """All that a client hears which sends these pieces, each on its own, and then nothing more."""

    async def main() -> bytes:
        ours, theirs = map(trio.socket.from_stdlib_socket, socket.socketpair())
        heard = b""
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, trio.SocketStream(ours))
                async with trio.SocketStream(theirs) as client:
                    with suppress(trio.BrokenResourceError):  # hung up on already
                        for piece in pieces:
                            await client.send_all(piece)
                            await trio.testing.wait_all_tasks_blocked()
                        await client.send_eof()
                    async for data in client:
                        heard += data
        return heard

    async def serve(stream: trio.SocketStream) -> None:
        await Connection(app, stream, Patience(idle_s, 5.0)).run()
        await stream.aclose()

    return trio.run(main)


def bodies(heard: bytes) -> list[bytes]:
    found = []
    while heard:
        head, _, rest = heard.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        found.append(rest[: int(length[1])])
        heard = rest[int(length[1]) :]
    return found


@settings(max_examples=examples(25))
@given(cuts=st.lists(st.integers(0, len(b"".join(REQUESTS))), max_size=12))
def test_requests_are_answered_once_and_in_order_however_they_are_cut(cuts: list[int]) -> None:
    whole = b"".join(REQUESTS)
    ends = [*sorted(set(cuts)), len(whole)]
    pieces = [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    assert bodies(exchange([piece for piece in pieces if piece])) == SAID


def test_a_body_that_nobody_read_is_no_second_request() -> None:
    inner = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
    asked = b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(inner)
    expected = [b"POST /unread 0", b"GET /a 0"]
    assert bodies(exchange([asked, inner, REQUESTS[0]])) == expected
    assert bodies(exchange([asked + inner + REQUESTS[0]])) == expected


def test_two_lengths_or_a_length_and_chunks_are_refused() -> None:
    for lines in (
        b"content-length: 3\r\ncontent-length: 4",
        b"content-length: 3\r\ntransfer-encoding: chunked",
    ):
        heard = exchange([b"POST /b HTTP/1.1\r\nhost: x\r\n" + lines + b"\r\n\r\n0\r\n\r\n" + REQUESTS[0]])
        # By the standard chunks count where both are given; a second length makes the whole a malformed request.
        assert heard.startswith(b"HTTP/1.1 400") or bodies(heard) == [b"POST /b 0", b"GET /a 0"]
        assert heard.count(b"HTTP/1.1") <= 2


def test_who_waits_for_leave_to_send_the_body_gets_it() -> None:
    head = b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n"
    heard = exchange([head, b"ok"])
    assert heard.startswith(b"HTTP/1.1 100 ")
    assert bodies(heard.partition(b"\r\n\r\n")[2]) == [b"POST /b 2"]


def test_a_body_that_is_none_ends_the_connection_with_an_answer() -> None:
    head = b"POST /b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    assert bodies(exchange([head + b"zz\r\n", REQUESTS[0]])) == [b"gone"]
    assert bodies(exchange([REQUESTS[1][:-4]])) == [b"gone"]


def test_a_fault_of_the_application_is_an_answer_without_its_details() -> None:
    heard = exchange([REQUESTS[0], REQUESTS[0]], faulty)
    assert heard.startswith(b"HTTP/1.1 500")
    assert b"secret" not in heard
    assert heard.count(b"HTTP/1.1") == 1


def test_the_answer_to_head_has_no_body_and_old_clients_are_hung_up_on() -> None:
    heard = exchange([b"HEAD /a HTTP/1.1\r\nhost: x\r\n\r\n" + REQUESTS[0]])
    assert b"content-length: 9" in heard
    assert bodies(heard.partition(b"\r\n\r\n")[2]) == [b"GET /a 0"]
    assert bodies(exchange([b"GET /a HTTP/1.0\r\n\r\n" + REQUESTS[0]])) == [b"GET /a 0"]
