"""A node's RPC and event stream for a trio program: one connection a call, every wait bounded by the caller."""

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import h11
import trio

CALL_TIMEOUT_S = 3.0
RECEIVE_BYTES = 64 * 1024
EVENT_BYTES_MAX = 16 * 2**20

Take = Callable[[str, str, dict[str, Any]], None]
"""What is told of an event: its kind, its id, its members."""


class NodeSilent(Exception):
    """Nobody answered, or not in time, or not in HTTP."""


class Refused(Exception):
    """The node answered with an error."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(f"{message} (code {code})")


async def call(url: str, method: str, timeout_s: float = CALL_TIMEOUT_S, **params: object) -> Any:
    """The result of one call; raises `NodeSilent`, `Refused`."""
    answer = (await call_batch(url, [(method, params)], timeout_s))[0]
    if isinstance(answer, Refused):
        raise answer
    return answer


async def call_batch(
    url: str, calls: Sequence[tuple[str, dict[str, object]]], timeout_s: float = CALL_TIMEOUT_S
) -> list[Any]:
    """The results of several calls in one request, in order, a `Refused` in place of a refused one's; raises `NodeSilent`."""
    rows = [
        {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        for number, (method, params) in enumerate(calls)
    ]
    answers = None
    with trio.move_on_after(timeout_s):
        answers = json.loads(await _exchange(url, "POST", "/", json.dumps(rows).encode()))
    if answers is None:
        raise NodeSilent(f"{url} said nothing for {timeout_s:g} s")
    if not isinstance(answers, list) or len(answers) != len(rows):
        raise NodeSilent(f"{url} answered {str(answers)[:200]}")
    by_id = {answer.get("id"): answer for answer in answers}
    if set(by_id) != set(range(len(rows))):
        raise NodeSilent(f"{url} answered other calls than it was asked")
    return [_result(by_id[number]) for number in range(len(rows))]


def _result(answer: dict[str, Any]) -> Any:
    error = answer.get("error")
    return Refused(int(error["code"]), str(error["message"])) if error else answer["result"]


async def ready(url: str, timeout_s: float = CALL_TIMEOUT_S) -> str:
    """What ``GET /ready`` says, in its words; raises `NodeSilent`."""
    with trio.move_on_after(timeout_s):
        return (await _exchange(url, "GET", "/ready", b"")).decode("utf-8", "replace")
    raise NodeSilent(f"{url} said nothing for {timeout_s:g} s")


async def follow(url: str, after: str | None, take: Take) -> None:
    """Give every event after `after` to `take` until the connection ends; raises `NodeSilent` where there is none."""
    target = "/events" if after is None else f"/events?after={after}"
    pending = b""
    async with aclosing(_body(url, "GET", target, b"")) as pieces:
        async for piece in pieces:
            pending += piece
            if len(pending) > EVENT_BYTES_MAX:
                raise NodeSilent(f"{url} sent an event of over {EVENT_BYTES_MAX} bytes")
            *texts, pending = pending.split(b"\n\n")
            for text in texts:
                rows = dict(
                    line.split(": ", 1) for line in text.decode().splitlines() if not line.startswith(":")
                )
                if "event" in rows:
                    take(rows["event"], rows.get("id", ""), json.loads(rows.get("data", "{}")))


async def _exchange(url: str, method: str, target: str, body: bytes) -> bytes:
    async with aclosing(_body(url, method, target, body)) as pieces:
        return b"".join([piece async for piece in pieces])


async def _body(url: str, method: str, target: str, body: bytes) -> AsyncGenerator[bytes, None]:
    """The pieces of an answer's body as they arrive; raises `NodeSilent`."""
    address = urlsplit(url)
    headers = [
        ("host", address.netloc),
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("connection", "close"),
    ]
    connection = h11.Connection(h11.CLIENT)
    try:
        async with await trio.open_tcp_stream(address.hostname or "", address.port or 80) as stream:
            request = connection.send(h11.Request(method=method, target=target, headers=headers)) or b""
            data = connection.send(h11.Data(data=body)) or b""
            await stream.send_all(request + data + (connection.send(h11.EndOfMessage()) or b""))
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some(RECEIVE_BYTES))
                elif isinstance(event, h11.Data):
                    yield bytes(event.data)
                elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                    return
    except (OSError, trio.BrokenResourceError, h11.RemoteProtocolError) as error:
        raise NodeSilent(f"{url}: {error}") from error
