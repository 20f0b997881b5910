"""The typed client against a real server, and against what is no node."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from node.client import (
    Client,
    NodeUnreachable,
    RpcError,
    TransactionExpired,
    TransactionRejected,
    WaitTimeout,
)
from node.config import RpcSection
from node.ledger.bodies import ContributionSubmit, DatanetCreate, Held, ProviderBond, Transfer
from node.ledger.params import OPEN
from node.rpc.errors import Code
from node.storage.blobs import blob_digest
from tests.unit.node.ledger_backend import LedgerBackend, running_server
from tests.unit.node_ledger.world import address, seed


def test_send_and_wait_moves_money_and_counts_nonces() -> None:
    with running_server(LedgerBackend(execute_at_once=True)) as server:
        client = Client(server.url)
        for expected in range(3):
            done = client.send_and_wait(seed("ann"), Transfer(address("ben"), 7))
            assert (done["status"], done["nonce"]) == ("ok", expected)
        assert client.account_nonce(address("ann")) == 3
        assert server.backend.world.balance("ben") == 10_000 * OPEN + 21


def test_nonces_count_what_is_pending() -> None:
    with running_server() as server:
        client = Client(server.url)
        sent = [client.send(seed("ann"), Transfer(address("ben"), 7)) for _ in range(3)]
        assert [entry.nonce for entry in sent] == [0, 1, 2]
        server.do(server.backend.execute)
        assert [client.wait_transaction(entry.tx_hash)["status"] for entry in sent] == ["ok"] * 3


def test_a_failed_transaction_raises_with_the_ledgers_code() -> None:
    with running_server(LedgerBackend(execute_at_once=True)) as server:
        client = Client(server.url)
        with pytest.raises(TransactionRejected) as caught:
            client.send_and_wait(seed("ann"), Transfer(address("ben"), 2**60))
        assert (caught.value.status, caught.value.code) == ("failed", "insufficient-balance")


def test_waiting_ends_when_the_transaction_expired() -> None:
    with running_server() as server:
        client = Client(server.url)
        sent = client.send(seed("ann"), Transfer(address("ben"), 7), valid_heights=2)
        server.backend.pending.clear()
        server.do(server.backend.world.blocks, 3)
        with pytest.raises(TransactionExpired):
            client.wait_transaction(sent.tx_hash, 10, sent.valid_until)


def test_waiting_is_bounded() -> None:
    with running_server() as server:
        client = Client(server.url)
        with pytest.raises(WaitTimeout):
            client.wait_transaction(bytes(32), 0.2, poll_s=0.05)
        with pytest.raises(WaitTimeout):
            client.wait_height(5, 0.2)


def test_duties_carry_neither_nonce_nor_fee() -> None:
    with running_server() as server:
        sent = Client(server.url).send(seed("val0"), Held(bytes(32), b""))
        assert (sent.nonce, sent.fee) == (0, 0)


def test_a_contribution_with_its_blob_goes_all_the_way() -> None:
    with running_server(LedgerBackend(execute_at_once=True)) as server:
        client, world = Client(server.url), server.backend.world
        datanet = client.send_and_wait(seed("ann"), DatanetCreate("docs", ("MIT",), ""))["tx_hash"]
        blob = b"the ledger leaves content to the validators' receipts"
        template = world.contribution(bytes.fromhex(datanet), "x")
        body = ContributionSubmit(
            template.datanet,
            template.records_root,
            2,
            template.token_count,
            client.put_blob(blob),
            len(blob),
            "MIT",
        )
        done = client.send_and_wait(seed("ben"), body)
        stored = client.call("contribution", id=done["tx_hash"])
        assert (stored["contributor"], stored["blob_digest"]) == (
            address("ben").hex(),
            blob_digest(blob).hex(),
        )


def test_the_estimated_fee_is_enough_for_every_kind_that_pays() -> None:
    with running_server(LedgerBackend(execute_at_once=True)) as server:
        client = Client(server.url)
        for body in (ProviderBond(100 * OPEN, "p"), DatanetCreate("d", ("MIT",), "x" * 1000)):
            assert client.send_and_wait(seed("ann"), body)["status"] == "ok"


def test_unknown_transactions_are_none_and_other_refusals_are_raised() -> None:
    with running_server() as server:
        client = Client(server.url)
        assert client.transaction(bytes(32)) is None
        with pytest.raises(RpcError) as caught:
            client.get_blob(bytes(32))
        assert (caught.value.code, caught.value.data["what"]) == (Code.NOT_FOUND, "blob")


def test_a_refused_body_gives_the_servers_reason() -> None:
    with running_server(config=RpcSection(port=0, body_bytes_max=2048)) as server:
        with pytest.raises(RpcError) as caught:
            Client(server.url).put_blob(bytes(4 * 2**20))
        assert caught.value.code == Code.BODY_TOO_LARGE


def test_nobody_at_home_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(NodeUnreachable, match="cannot reach a node"):
        Client(f"http://127.0.0.1:{port}", timeout_s=2, retries=1).status()


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:7550", "https://127.0.0.1:1", "http://", "file:///etc/passwd"]
)
def test_urls_that_no_node_can_have_are_refused(url: str) -> None:
    with pytest.raises(NodeUnreachable):
        Client(url)


@contextmanager
def answering(answers: list[bytes]) -> Iterator[str]:
    """A server that answers each connection with the next of ``answers`` and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(5)


def http_answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"id": 99, "result": 1}', b'"x"'])
def test_what_is_not_json_rpc_is_no_node(body: bytes) -> None:
    with answering([http_answer(body)]) as url, pytest.raises(NodeUnreachable):
        Client(url, timeout_s=5, retries=0).status()


def test_broken_connections_are_retried_a_bounded_number_of_times() -> None:
    good = http_answer(b'{"jsonrpc": "2.0", "id": 1, "result": 5}')
    with answering([b"", b"", good]) as url:
        assert Client(url, timeout_s=5, retries=2).call("anything") == 5
    with answering([b"", b""]) as url, pytest.raises(NodeUnreachable):
        Client(url, timeout_s=5, retries=1).call("anything")


def test_refusals_are_not_retried() -> None:
    refusal = http_answer(
        b'{"jsonrpc": "2.0", "id": 1, "error": {"code": -32002, "message": "no", "data": {}}}'
    )
    with answering([refusal]) as url, pytest.raises(RpcError):
        Client(url, timeout_s=5, retries=5).call("tx_submit", tx="00")
