"""JSON-RPC 2.0 framing without HTTP, and the table of errors against its documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import trio

from node.errors import (
    BlobMissing,
    MempoolFull,
    MempoolSenderFull,
    NotReady,
    TransactionUnderpriced,
)
from node.ledger.errors import InvalidCode, InvalidTransactionError
from node.rpc.errors import CODES, Code, Fault, fault_of
from node.rpc.methods import METHODS
from node.rpc.protocol import answer
from node.storage.errors import BlobQuotaExceeded, BlobTooLarge
from tests.unit.node.ledger_backend import LedgerBackend

DOCUMENT = Path(__file__).parents[3] / "docs" / "rpc.md"


def ask(body: bytes | object, batch_max: int = 5, response_bytes_max: int = 10**6) -> object:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answered = trio.run(answer, raw, METHODS, LedgerBackend(), batch_max, response_bytes_max)
    return None if answered is None else json.loads(answered)


def code_of(response: object) -> int:
    assert isinstance(response, dict)
    assert set(response) == {"jsonrpc", "id", "error"}
    code = response["error"]["code"]
    assert isinstance(code, int)
    return code


def call(identity: object = 1, method: object = "supply", **members: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": identity, "method": method, **members}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"jsonrpc": "2.0", "id": NaN, "method": "supply"}',
        b'{"jsonrpc": "2.0", "id": 1, "id": 2, "method": "supply"}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "block", "params": {"height": 1, "height": 2}}',
        b"[" * 60_000,
        b"1" * 5000,
    ],
)
def test_what_is_not_json_is_a_parse_error(body: bytes) -> None:
    assert code_of(ask(body)) == Code.PARSE_ERROR


@pytest.mark.parametrize(
    "request_",
    [
        5,
        "supply",
        None,
        {},
        {"jsonrpc": "1.0", "id": 1, "method": "supply"},
        {"id": 1, "method": "supply"},
        call(method=5),
        call(identity={}),
        call(identity=1.5),
        call(identity=True),
        call(identity="x" * 257),
        call(identity=2**64),
        [],
    ],
)
def test_what_is_no_request_is_an_invalid_request(request_: object) -> None:
    assert code_of(ask(request_)) == Code.INVALID_REQUEST


@pytest.mark.parametrize("identity", [0, -7, "", "seven", None])
def test_ids_come_back_as_given(identity: object) -> None:
    response = ask(call(identity))
    assert isinstance(response, dict)
    assert response["id"] == identity
    assert "result" in response


def test_an_unknown_method_says_which_there_are() -> None:
    response = ask(call(method="eth_call"))
    assert code_of(response) == Code.METHOD_NOT_FOUND
    assert isinstance(response, dict)
    assert response["error"]["data"] == {"method": "eth_call", "methods": sorted(METHODS)}


def test_positional_parameters_are_refused() -> None:
    assert code_of(ask(call(method="block", params=[1]))) == Code.INVALID_PARAMS


def test_notifications_get_no_answer() -> None:
    notification = {"jsonrpc": "2.0", "method": "supply"}
    assert ask(notification) is None
    assert ask([notification, notification]) is None
    assert ask({**notification, "method": "eth_call"}) is None


def test_a_batch_is_answered_in_order_without_its_notifications() -> None:
    responses = ask([call(1), {"jsonrpc": "2.0", "method": "supply"}, call(2, "eth_call"), 5])
    assert isinstance(responses, list)
    assert [response["id"] for response in responses] == [1, 2, None]
    assert "result" in responses[0]
    assert [code_of(response) for response in responses[1:]] == [Code.METHOD_NOT_FOUND, Code.INVALID_REQUEST]


def test_a_batch_over_the_limit_is_refused_whole() -> None:
    assert code_of(ask([call(number) for number in range(6)])) == Code.BATCH_TOO_LONG


def test_a_batch_stops_executing_once_its_answers_are_too_large() -> None:
    responses = ask([call(number) for number in range(3)], response_bytes_max=10)
    assert isinstance(responses, list)
    assert "result" in responses[0]
    assert [code_of(response) for response in responses[1:]] == [Code.RESPONSE_TOO_LARGE] * 2


ERRORS: list[Exception] = [
    NotReady("syncing"),
    InvalidTransactionError(InvalidCode.WRONG_NONCE, nonce=1, expected=0),
    MempoolFull(5),
    MempoolSenderFull(bytes(32), 5, "too many"),
    TransactionUnderpriced(10**18),
    BlobMissing(bytes(32)),
    BlobTooLarge(10, 5),
    BlobQuotaExceeded(10, 5),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_each_error_of_the_node_has_the_data_that_its_row_promises(error: Exception) -> None:
    fault = fault_of(error)
    assert fault is not None
    assert set(fault.data) == set(CODES[fault.code].data)
    json.dumps(fault.to_json())


def test_other_exceptions_are_no_answer_to_a_client() -> None:
    assert fault_of(ValueError("secret")) is None
    assert fault_of(Fault(Code.NOT_FOUND, "no")) is not None


def test_every_code_has_a_row_and_a_number_of_its_own() -> None:
    assert set(CODES) == set(Code)
    application = [code for code in Code if code >= -32099]
    assert all(-32099 <= code <= -32000 for code in application)


def test_the_documentation_has_the_same_table_of_errors() -> None:
    rows = re.findall(r"^\| (-32\d{3}) \| `(\w+)` \| (.+?) \| (.*?) ?\|$", DOCUMENT.read_text(), re.MULTILINE)
    documented = {
        int(code): (name, meaning, tuple(re.findall(r"`(\w+)`", data))) for code, name, meaning, data in rows
    }
    assert documented == {int(code): (code.name, info.meaning, info.data) for code, info in CODES.items()}


def test_the_documentation_describes_every_method_and_parameter() -> None:
    headings = re.findall(r"^### `([\w.]+)(?: (\{.*\}))?`$", DOCUMENT.read_text(), re.MULTILINE)
    documented = {name: re.findall(r'"(\w+)":', params) for name, params in headings}
    assert documented == {name: [param.name for param in method.params] for name, method in METHODS.items()}
