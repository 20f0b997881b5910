"""Whatever bytes or JSON a client sends, it gets typed answers with the data that the table promises, or none."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from node.rpc.errors import CODES, Code
from node.rpc.methods import METHODS
from node.rpc.protocol import answer
from tests.unit.node.ledger_backend import LedgerBackend

BACKEND = LedgerBackend()
BATCH_MAX = 5

names = st.one_of(st.sampled_from(sorted(METHODS)), st.text(max_size=20))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=2**63, max_value=2**200),
    st.floats(),
    st.text(),
    st.text(st.characters(categories=["Cs"]), min_size=1, max_size=4),
    st.just("ab" * 32),
)
documents = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
)
params = st.dictionaries(
    st.one_of(st.sampled_from(sorted({p.name for m in METHODS.values() for p in m.params})), st.text()),
    documents,
    max_size=4,
)
requests = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.one_of(st.just("2.0"), documents),
        "id": documents,
        "method": st.one_of(names, documents),
        "params": st.one_of(params, documents),
        "more": documents,
    },
)
well_formed = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0"), "id": st.integers(-5, 5), "method": names, "params": params}
)


def ask(body: bytes) -> Any:
    answered = trio.run(answer, body, METHODS, BACKEND, BATCH_MAX, 10**6)
    return None if answered is None else json.loads(answered)


def check(response: object) -> None:
    """A JSON-RPC response: a result, or an error of the table with its row's data."""
    assert isinstance(response, dict)
    assert response["jsonrpc"] == "2.0"
    if "error" not in response:
        assert set(response) == {"jsonrpc", "id", "result"}
        return
    error = response["error"]
    assert set(error) == {"code", "message", "data"}
    assert error["code"] != Code.INTERNAL_ERROR
    assert set(error["data"]) == set(CODES[Code(error["code"])].data)
    assert error["message"]


def check_all(responses: object) -> None:
    for response in responses if isinstance(responses, list) else [responses]:
        if response is not None:
            check(response)


@given(st.binary(max_size=200))
def test_arbitrary_bytes(body: bytes) -> None:
    check_all(ask(body))


@given(st.one_of(documents, requests, st.lists(requests, max_size=7), well_formed))
def test_arbitrary_json(document: object) -> None:
    check_all(ask(json.dumps(document).encode()))


@given(st.lists(st.one_of(requests, well_formed), min_size=1, max_size=BATCH_MAX))
def test_batches_answer_each_request_that_has_an_id_and_no_notification(batch: list[dict[str, Any]]) -> None:
    body = json.dumps(batch).encode()
    responses = ask(body)
    try:
        json.loads(body, parse_constant=lambda name: 1 / 0)
    except ZeroDivisionError:
        assert responses["error"]["code"] == Code.PARSE_ERROR
        return
    well = [request for request in batch if "id" not in request and _is_call(request)]
    assert len(responses or []) == len(batch) - len(well)


def _is_call(request: dict[str, Any]) -> bool:
    return (
        request.get("jsonrpc") == "2.0"
        and isinstance(request.get("method"), str)
        and isinstance(request.get("params", {}), dict)
    )


NESTED = b'{"jsonrpc":"2.0","id":1,"method":"status","params":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (NESTED, Code.PARSE_ERROR),
        (b"[" * 2000 + b"]" * 2000, Code.PARSE_ERROR),
        (
            b'{"jsonrpc":"2.0","id":1,"method":"block","params":{"height":%s}}' % (b"9" * 4000),
            Code.INVALID_PARAMS,
        ),
        (
            b'{"jsonrpc":"2.0","id":1,"method":"block","params":{"height":%s}}' % (b"9" * 5000),
            Code.PARSE_ERROR,
        ),
        (b'{"jsonrpc":"2.0","id":1,"method":"block","params":{"height":1e999}}', Code.INVALID_PARAMS),
        (b'{"jsonrpc":"2.0","id":1,"method":"block","params":{"height":-0.0}}', Code.INVALID_PARAMS),
        (b'{"jsonrpc":"2.0","id":1,"method":"block","params":{"height":-Infinity}}', Code.PARSE_ERROR),
        (b'{"jsonrpc":"2.0","id":1e999,"method":"status"}', Code.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}', Code.METHOD_NOT_FOUND),
        (b'{"jsonrpc":"2.0","id":1,"method":"block","params":{"\\udfff":1}}', Code.INVALID_PARAMS),
        (b'{"jsonrpc":"2.0","id":1,"method":"\xed\xa0\x80"}', Code.PARSE_ERROR),
        (b'{"jsonrpc":"2.0","id":1,"method":"status","method":"tx"}', Code.PARSE_ERROR),
        (b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"method":"status"}', Code.PARSE_ERROR),
        (b'{"jsonrpc":"2.0","id":1,"method":"status"}{}', Code.PARSE_ERROR),
        (b'{"jsonrpc":"2.0","id":1,"method":"block","params":null}', Code.INVALID_PARAMS),
        (b'{"jsonrpc":"2.0","id":[1],"method":"status"}', Code.INVALID_REQUEST),
    ],
    ids=range(16),
)
def test_known_traps_have_their_code(body: bytes, code: Code) -> None:
    response = ask(body)
    check(response)
    assert response["error"]["code"] == code


def test_what_is_deep_but_no_request_is_refused_like_anything_else() -> None:
    check(ask(b"[" * 400 + b"]" * 400)[0])


def test_a_large_body_of_small_values_is_refused_before_it_is_parsed() -> None:
    body = b"[" + b"[]," * 1_000_000 + b"[]]"
    tracemalloc.start()
    try:
        response = ask(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    check(response)
    assert response["error"]["code"] == Code.INVALID_REQUEST
    assert peak < 1_000_000
